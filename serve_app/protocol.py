"""What travels through the graph: the envelope, the stage contract, the engine contract.

Plain dataclasses that pickle fast; no Ray, no HTTP, no engine library.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.control.protocol import ServedAdapter

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
class Span:
    """One stage's step on one envelope; times in milliseconds."""

    stage: str
    ms: float
    batch: int
    outcome: str = "ok"


@dataclass
class Block:
    """Why a request was stopped, as the client will read it."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = 1.0
    """When to come back after a 429 or 503; None where waiting does not help."""


@dataclass
class Usage:
    """Tokens that a request has cost: what is metered and billed."""

    version: str
    prompt_tokens: int
    completion_tokens: int
    exact: bool = True
    """False where the request was given up and what the engine had done is bounded only."""


@dataclass
class Route:
    """Where the request goes and why. `adapter` None is the base model."""

    adapter: str | None
    intent: str
    confidence: float
    novelty: float
    """Cosine distance to the nearest known example, 0 to 2."""
    reason: str
    instead_of: str | None = None
    """The router's choice, where a policy overrode it."""


@dataclass
class Snippet:
    """A retrieved passage and its cosine similarity to the request."""

    document: str
    text: str
    score: float


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
    prompt_tokens: int
    completion_tokens: int
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
class Verdicts:
    """What monitoring made of the answer."""

    confidence: float
    """Geometric mean of the token probabilities, 0 to 1."""
    weakest: float
    """Probability of the least likely token."""
    reasons: list[str] = field(default_factory=list)
    """Why this is an edge case; empty when it is none."""
    sampled: bool = False


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
    """One request on its road. Stages fill it in; nothing in it is an HTTP or engine type."""

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
    """The request's unit vector, float32, as raw bytes: they cross a hop for almost nothing."""
    route: Route | None = None
    override: str | None = None
    """The adapter a policy insists on; it becomes the route once routing has spoken."""
    rules: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    max_discount: int | None = None
    snippets: list[Snippet] = field(default_factory=list)
    prompt: list[dict[str, str]] = field(default_factory=list)
    generation: Generation | None = None
    usage: Usage | None = None
    """None where nothing was asked of a model."""
    cache: str = "off"
    """`hit`, `miss`, or `off` where the answer may not come from the cache."""
    answer: str = ""
    """For the log: masked."""
    shown: str | None = None
    """For the client, its own values still to be restored, where that is not `answer`. It stays in
    the gateway's process."""
    verdicts: Verdicts | None = None
    block: Block | None = None
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
    (`block`, `warnings`); raising fails the whole batch and is left to faults.
    """

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Do this stage's work on each envelope."""
        ...


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt for the engine. `adapter` None is the base model alone.

    Without `chat`, the messages' texts are the prompt as they stand, without a chat template.
    """

    request_id: str
    messages: tuple[dict[str, str], ...]
    sampling: Sampling
    adapter: ServedAdapter | None
    chat: bool = True
    salt: str = ""
    """Whose cached prompts it may share: the time to a first token tells what was asked before."""


@dataclass(frozen=True)
class Delta:
    """A piece of a streamed answer; the last thing a stream yields is a `Generation`."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    """Its tokens, where log-probabilities were asked for."""
    read: int = 0
    """Tokens of the prompt."""
    written: int = 0
    """Tokens of the answer so far, this piece's among them."""


Arrived = Callable[[Delta | Generation], None]


def unheard(_item: Delta | Generation) -> None:
    """Nobody wants to know."""


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


class Engines(Protocol):
    """The engines behind a gateway; what they do is in `Engine`."""

    async def complete(self, request: GenerationRequest) -> Generation:
        """See `Engine.complete`."""
        ...

    def stream(
        self, request: GenerationRequest, arrived: Arrived = unheard
    ) -> AsyncGenerator[Delta | Generation, None]:
        """See `Engine.stream`.

        `arrived` hears of each item as soon as the gateway has it, however far behind its client
        reads: what was generated is paid for.
        """
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


def trace_record(envelope: Envelope, at: float) -> dict[str, Any]:
    """The durable trace of an envelope: every decision, text masked, no vault."""
    generation, verdicts, route = envelope.generation, envelope.verdicts, envelope.route
    return {
        "trace_id": envelope.trace_id,
        "received_at": envelope.received_at,
        "recorded_at": at,
        "tenant": envelope.tenant,
        "key_id": envelope.key_id,
        "attributes": envelope.attributes,
        "requested_model": envelope.model,
        "metadata": envelope.metadata,
        "stream": envelope.stream,
        "messages": envelope.messages,
        "masked": envelope.masked,
        "route": vars(route) if route else None,
        "rules": envelope.rules,
        "conflicts": envelope.conflicts,
        "context": [vars(snippet) for snippet in envelope.snippets],
        "prompt": envelope.prompt,
        "generation": {k: v for k, v in vars(generation).items() if k != "tokens"}
        if generation
        else None,
        "usage": vars(envelope.usage) if envelope.usage else None,
        "cache": envelope.cache,
        "answer": envelope.answer,
        "verdicts": vars(verdicts) if verdicts else None,
        "block": vars(envelope.block) if envelope.block else None,
        "spans": [vars(span) for span in envelope.spans],
        "warnings": envelope.warnings,
    }


def last_user_text(messages: Sequence[dict[str, str]]) -> str:
    """The newest user message: what routing and retrieval look at."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
