"""What travels through the graph: the envelope, the stage contract, the engine contract.

Plain dataclasses that pickle fast; imports no Ray, no web framework, no engine library.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.policy.decision import Constraint, Override
from cluster.records.adapter import ServedAdapter
from cluster.records.model import Target
from cluster.records.trace import (
    FeedbackTrace,
    GenerationRecord,
    Refusal,
    RefusalTrace,
    RequestTrace,
    Route,
    Snippet,
    Span,
    Verdicts,
)
from cluster.records.usage import TokenUsage

#: The stages in the order of their first step; governance is passed twice.
STAGES = (
    "data_prep",
    "governance",
    "routing",
    "policy",
    "context",
    "monitoring",
    "audit",
)

#: What clients call the model behind `/v1/embeddings`; a request for it is embedded, not routed.
EMBEDDING_MODEL = "all-minilm-l6-v2"


@dataclass
class Sampling:
    """How to generate; the client's wishes, already bounded."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None
    """Alternatives to report for each token; None reports nothing by token."""
    json_schema: str | None = None
    """A JSON Schema, as JSON text, that the answer has to fit."""
    tools: str | None = None
    """The functions the model may call, as JSON text in OpenAI's shape."""


@dataclass
class TokenLogprob:
    """A token of an answer, and its likeliest alternatives as (text, log-probability)."""

    text: str
    logprob: float
    top: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class Generation:
    """What the engine wrote. Log-probabilities are kept by token only where they were asked for."""

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
    tokens: list[TokenLogprob] | None = None
    waited_ms: float = 0.0
    """Of the total, until it was its adapter's turn among the others."""


@dataclass
class PromptCount:
    """Has the prompt of several answers count once: with the first that an engine read it for."""

    trace_id: str | None = None

    def counts_with(self, trace_id: str) -> bool:
        """Whether the prompt's tokens are this answer's; asked once an engine has read it."""
        if self.trace_id is None:
            self.trace_id = trace_id
        return self.trace_id == trace_id


@dataclass
class Envelope:
    """One request on its way. Stages fill it in."""

    trace_id: str
    received_at: float
    tenant: str
    attributes: dict[str, str]
    model: str
    messages: list[dict[str, str]]
    sampling: Sampling
    key_id: str = ""
    models: frozenset[str] = frozenset()
    """The adapters its key is limited to; empty is no limit beyond the tenant's."""
    user: str = ""
    """Whom the caller asks for, where it says so; it stays in the gateway's process."""
    tools: str | None = None
    """The functions the model may call, as JSON text in OpenAI's shape."""
    structured: bool = False
    """Whether its answer is JSON by a schema, or may hold tool calls."""
    listed: tuple[str, ...] = ()
    """Values that the caller's schemas list and that look like personal data: they stay."""
    metadata: dict[str, str] = field(default_factory=dict)
    stream: bool = False
    chat: bool = True
    """Whether the messages are a conversation, or one text to be continued as it stands."""
    counting: PromptCount = field(default_factory=PromptCount)
    """Shared by the answers to one prompt; it stays in the gateway's process."""

    vault: dict[str, str] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    placeholders: tuple[str, ...] = ()
    """Those in its texts, issued or written by the caller: the answer's own values get others."""
    embedding: bytes = b""
    """The request's unit vector, float32, as raw bytes: cheap to pass between processes."""
    route: Route | None = None
    override: Override | None = None
    """The adapter a policy insists on; it becomes the route once routing has spoken."""
    rules: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    constraints: tuple[Constraint, ...] = ()
    """What the answer must not say, by policy."""
    snippets: list[Snippet] = field(default_factory=list)
    prompt: list[dict[str, str]] = field(default_factory=list)
    generation: Generation | None = None
    usage: TokenUsage | None = None
    """None where nothing was asked of a model."""
    cache: str = "off"
    """`hit`, `miss`, or `off` where the answer may not come from the cache."""
    answer: str = ""
    """For the log: masked."""
    shown: str | None = None
    """For the client, its own values still to be restored, where that is not `answer`. It stays in
    the gateway's process."""
    verdicts: Verdicts | None = None
    refusal: Refusal | None = None
    event: RefusalTrace | FeedbackTrace | None = None
    """What audit is to record in place of a request: it carries nothing else then."""
    spans: list[Span] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def texts(self) -> Iterator[str]:
        """What the caller wrote: messages, metadata and tools."""
        for message in self.messages:
            yield from message.values()
        yield from self.metadata.values()
        if self.tools is not None:
            yield self.tools


class Stage(Protocol):
    """A batch in, the same batch out, in order.

    A stage mutates and returns its own copies. One envelope's trouble is written on that envelope
    (`refusal`, `warnings`); raising fails the whole batch and is left to faults.
    """

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Do this stage's work on each envelope."""
        ...


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt for a target.

    Without `chat`, the messages' texts are the prompt as they stand, without a chat template.
    """

    request_id: str
    messages: tuple[dict[str, str], ...]
    sampling: Sampling
    target: Target
    chat: bool = True
    salt: str = ""
    """Whose cached prompts it may share: the time to a first token tells what was asked before."""

    @property
    def adapter(self) -> ServedAdapter | None:
        """The version that the engine applies to its base model; None is the base model alone."""
        return self.target.adapter


@dataclass(frozen=True)
class Delta:
    """A piece of a streamed answer; the last thing a stream yields is a `Generation`."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    """Its tokens, where log-probabilities were asked for."""
    input_tokens: int = 0
    output_tokens: int = 0
    """Tokens of the answer so far, this piece's among them."""


class Engine(Protocol):
    """A generation engine that holds several adapters. Errors are the ones named here."""

    async def complete(self, request: GenerationRequest) -> Generation:
        """The whole answer.

        Raises:
            AdapterGone: this replica no longer takes requests for that version; resolve again.
            AdapterKilled: the adapter is switched off, perhaps since this request began.
            PromptTooLong: prompt and answer do not fit the context.
            NotSupported: the engine cannot generate what was asked for.
        """
        ...

    def stream(self, request: GenerationRequest) -> AsyncIterator[Delta | Generation]:
        """The answer as it comes, then its `Generation`; errors as in `complete`."""
        ...


class AdapterGone(Exception):
    """The version is not resident here any more."""


class AdapterKilled(Exception):
    """The adapter is switched off."""


class PromptTooLong(ValueError):
    """The prompt and the tokens asked for exceed the context window."""


class NotSupported(ValueError):
    """The engine refuses the request's parameters, such as a JSON Schema it cannot compile."""


class EngineFailed(RuntimeError):
    """The engine broke on this request; its own log says why."""


@dataclass(frozen=True)
class EngineFault:
    """One of an engine's errors on its way over the wire."""

    kind: str
    message: str
    replica: str = ""
    """Whose it is."""

    @classmethod
    def of(cls, error: Exception, replica: str = "") -> EngineFault:
        """The wire form of `error`, which is one of `Engine`'s."""
        kind = next(k for k, v in _FAULTS.items() if isinstance(error, v))
        return cls(kind, str(error), replica)

    @property
    def gone(self) -> bool:
        """Whether the replica does not hold the adapter, and another may."""
        return _FAULTS[self.kind] is AdapterGone

    def raised(self) -> Exception:
        """The error this stands for."""
        return _FAULTS[self.kind](self.message)


_FAULTS: dict[str, type[Exception]] = {
    "gone": AdapterGone,
    "killed": AdapterKilled,
    "too_long": PromptTooLong,
    "not_supported": NotSupported,
    "failed": EngineFailed,
}


def carrier(event: RefusalTrace | FeedbackTrace) -> Envelope:
    """The envelope that takes a record which is no request to the audit stage."""
    model = event.version if isinstance(event, FeedbackTrace) else event.requested_model
    envelope = Envelope(
        event.trace_id, event.received_at, event.tenant, {}, model, [], Sampling(), event.key_id
    )
    envelope.event = event
    return envelope


def request_trace(envelope: Envelope, now: float) -> RequestTrace:
    """The durable trace of an envelope: every decision, text masked, no vault."""
    return RequestTrace(
        trace_id=envelope.trace_id,
        received_at=envelope.received_at,
        recorded_at=now,
        tenant=envelope.tenant,
        key_id=envelope.key_id,
        attributes=envelope.attributes,
        requested_model=envelope.model,
        metadata=envelope.metadata,
        stream=envelope.stream,
        messages=envelope.messages,
        masked=envelope.masked,
        route=envelope.route,
        rules=envelope.rules,
        conflicts=envelope.conflicts,
        context=envelope.snippets,
        prompt=envelope.prompt,
        generation=_recorded(envelope.generation),
        usage=envelope.usage,
        cache=envelope.cache,
        answer=envelope.answer,
        verdicts=envelope.verdicts,
        refusal=envelope.refusal,
        spans=envelope.spans,
        warnings=envelope.warnings,
    )


def _recorded(found: Generation | None) -> GenerationRecord | None:
    if found is None:
        return None
    return GenerationRecord(
        text=found.text,
        version=found.version,
        input_tokens=found.input_tokens,
        output_tokens=found.output_tokens,
        finish_reason=found.finish_reason,
        mean_logprob=found.mean_logprob,
        min_logprob=found.min_logprob,
        first_token_ms=found.first_token_ms,
        total_ms=found.total_ms,
        replica=found.replica,
        waited_ms=found.waited_ms,
    )


def last_user_text(messages: Sequence[dict[str, str]]) -> str:
    """The newest user message: what routing and retrieval look at."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
