"""The trace: what the audit log keeps of a request, of a refusal and of feedback.

Three kinds, distinguished by `kind`. `decode` reads every version there ever was; a change of the
format is a new `VERSION` and an upgrade in `trace_v1` or a module beside it, never an edit of what
is on disk. Owns no file: `cluster.audit` writes and reads those.
"""

from __future__ import annotations

import json
from typing import Any, cast

import msgspec
from msgspec import Struct, field

from cluster.errors import DataError
from cluster.records.usage import TokenUsage

VERSION = 2


class Span(Struct, frozen=True):
    """One timed part of a request."""

    name: str
    """The stage, `generation`, or the target of one attempt to generate."""
    ms: float
    """Duration in milliseconds."""
    start_ms: float | None = None
    """Milliseconds after the request was received; None in traces of version 1."""
    batch: int = 1
    """Requests that were worked on together."""
    outcome: str = "ok"
    parent: str = ""
    """Name of the enclosing span; empty is the request itself."""

    @property
    def end_ms(self) -> float | None:
        """Milliseconds after the request was received; None where the start is not known."""
        return None if self.start_ms is None else self.start_ms + self.ms


class Refusal(Struct, frozen=True):
    """Why a request was stopped, as its client reads it."""

    status: int
    """HTTP status."""
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = 1.0
    """When to come back after a 429 or 503; None where waiting does not help."""


class Route(Struct, frozen=True):
    """Where the router sends a request and why. `adapter` None is the base model."""

    adapter: str | None
    intent: str
    confidence: float
    novelty: float
    """Cosine distance to the nearest known example, 0 to 2."""
    reason: str
    instead_of: str | None = None
    """The router's choice, where a policy overrode it."""


class Snippet(Struct, frozen=True):
    """A retrieved passage and its cosine similarity to the request."""

    document: str
    text: str
    score: float


class Verdicts(Struct, frozen=True):
    """What monitoring concluded about an answer."""

    confidence: float
    """Geometric mean of the token probabilities, 0 to 1."""
    weakest: float
    """Probability of the least likely token."""
    reasons: list[str] = field(default_factory=list)
    """Why this is an edge case; empty when it is none."""
    sampled: bool = False


class GenerationRecord(Struct, frozen=True):
    """What a model generated: text masked, without its tokens."""

    text: str
    version: str
    input_tokens: int
    output_tokens: int
    finish_reason: str
    mean_logprob: float
    min_logprob: float
    first_token_ms: float | None
    total_ms: float
    replica: str
    waited_ms: float = 0.0


class _Recorded(Struct, frozen=True):
    """What every kind of trace has."""

    trace_id: str
    received_at: float
    """Unix time in seconds, as all times here."""
    recorded_at: float
    tenant: str
    """Empty where the key is unknown."""
    key_id: str


class RequestTrace(_Recorded, frozen=True, tag_field="kind", tag="request"):
    """One request: every decision on its way, text masked."""

    attributes: dict[str, str]
    requested_model: str
    metadata: dict[str, str]
    stream: bool
    messages: list[dict[str, str]]
    masked: dict[str, int]
    """Kind of personal value to how many were masked."""
    route: Route | None
    rules: list[str]
    conflicts: list[str]
    context: list[Snippet]
    prompt: list[dict[str, str]]
    generation: GenerationRecord | None
    usage: TokenUsage | None
    """None where no model was asked."""
    cache: str
    """`hit`, `miss` or `off`."""
    answer: str
    verdicts: Verdicts | None
    refusal: Refusal | None
    spans: list[Span]
    warnings: list[str]
    schema: int = VERSION


class RefusalTrace(_Recorded, frozen=True, tag_field="kind", tag="refusal"):
    """An attempt that was refused before it became a request, such as a wrong key."""

    requested_model: str
    path: str
    refusal: Refusal
    unrecorded_before: int = 0
    """Attempts of the tenant since its last record that were only counted."""
    schema: int = VERSION


class FeedbackTrace(_Recorded, frozen=True, tag_field="kind", tag="feedback"):
    """What became of an answer, as its caller reports it."""

    about: str
    """Trace id of the request."""
    version: str
    """The version that answered, as the answer named it."""
    outcomes: dict[str, bool | int]
    schema: int = VERSION


Trace = RequestTrace | RefusalTrace | FeedbackTrace

_DECODER: msgspec.json.Decoder[Trace] = msgspec.json.Decoder(Trace)


def document(trace: Trace) -> dict[str, Any]:
    """The trace as the mapping that the audit log writes."""
    return {"kind": trace.__struct_config__.tag, **msgspec.structs.asdict(trace)}


def decode(line: bytes) -> Trace:
    """The trace on one line of the audit log, of whatever version.

    Raises:
        DataError: the line is no trace.
    """
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        from cluster.records import trace_v1

        found = _plain(line)
        if "kind" not in found and "schema" not in found:
            return trace_v1.upgrade(found)
        try:
            # Of this version after all, with text that strict UTF-8 refuses.
            return cast(Trace, msgspec.convert(found, Trace))
        except msgspec.ValidationError:
            raise DataError(f"not a trace: {error}") from error


def _plain(line: bytes) -> dict[str, Any]:
    """The document on `line`; the standard library accepts lone surrogates, which a client may
    send and msgspec refuses."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a trace: {error}") from error
    if not isinstance(found, dict):
        raise DataError("not a trace: not a JSON object")
    return found


class _Usage(Struct, frozen=True):
    """Usage in the vocabulary of any version."""

    target: str = ""
    version: str = ""
    input_tokens: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    completion_tokens: int = 0


class _Metered(Struct, frozen=True):
    recorded_at: float
    tenant: str
    key_id: str = ""
    cache: str = "off"
    usage: _Usage | None = None


class MeteredTrace(Struct, frozen=True):
    """What the meter needs of a trace."""

    recorded_at: float
    tenant: str
    key_id: str
    cached: bool
    usage: TokenUsage | None


_METERED = msgspec.json.Decoder(_Metered)


def metered(trace: Trace) -> MeteredTrace:
    """The metered part of a trace."""
    cached, usage = False, None
    if isinstance(trace, RequestTrace):
        cached, usage = trace.cache == "hit", trace.usage
    return MeteredTrace(trace.recorded_at, trace.tenant, trace.key_id, cached, usage)


def decode_metered(line: bytes) -> MeteredTrace:
    """The metered part of a line of the log, without decoding its texts.

    Raises:
        DataError: the line is no trace.
    """
    try:
        found = _METERED.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            found = msgspec.convert(_plain(line), _Metered)
        except msgspec.ValidationError as error:
            raise DataError(f"not a trace: {error}") from error
    usage = None
    if (used := found.usage) is not None:
        usage = TokenUsage(
            used.target or used.version,
            used.input_tokens or used.prompt_tokens,
            used.output_tokens or used.completion_tokens,
        )
    return MeteredTrace(found.recorded_at, found.tenant, found.key_id, found.cache == "hit", usage)
