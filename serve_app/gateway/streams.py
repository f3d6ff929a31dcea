"""Streamed answers: one or several choices as server-sent events on one response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from starlette.responses import StreamingResponse

from cluster.records.trace import Refusal
from serve_app.gateway import answers, errors, wire
from serve_app.gateway.auth import StillValid
from serve_app.gateway.budgets import Hold
from serve_app.gateway.errors import Refused
from serve_app.gateway.headers import WARNINGS, header_value
from serve_app.gateway.messages import Offer
from serve_app.pipeline.pieces import Piece
from serve_app.pipeline.pipeline import Pipeline
from serve_app.protocol import Envelope, Generation, TokenLogprob
from serve_app.tasks import in_turn
from serve_app.tools import OPEN, may_be_call

Items = AsyncGenerator[Piece | Envelope, None]
#: Pieces one choice may be ahead of what the client has taken.
_AHEAD = 32
_REVOKED = Refusal(401, "invalid_api_key", "this API key has ended")


async def streamed(
    pipeline: Pipeline,
    envelopes: Sequence[Envelope],
    body: wire.GenerateRequest,
    hold: Hold,
    *,
    chat: bool,
    valid: StillValid,
) -> StreamingResponse:
    """The response once every choice has come to its generation; each settles `hold` at its end.
    It ends early where the key that asked is not `valid` any more.

    Raises:
        Refused: a choice was refused before anything was generated for any of them.
    """
    streams = [pipeline.stream(envelope, hold.ended) for envelope in envelopes]
    try:
        firsts = await in_turn([anext(stream) for stream in streams])
    except BaseException:
        hold.close()  # nothing was generated yet
        raise
    refused = next((e for e in firsts if isinstance(e, Envelope) and e.refusal is not None), None)
    if refused is not None and refused.refusal is not None:
        for stream, first in zip(streams, firsts, strict=True):
            if isinstance(first, Envelope) and first.refusal is not None:
                async for _ in stream:
                    pass  # a refused request is audited like any other
            else:
                await stream.aclose()
        raise Refused(errors.for_shape(refused.refusal, chat=chat), refused.trace_id)
    first = envelopes[0]
    writer = answers.Stream(first.trace_id, int(first.received_at), chat)
    return StreamingResponse(
        _events(streams, envelopes, writer, body, valid),
        media_type="text/event-stream",
        headers={
            "x-headrace-trace-id": first.trace_id,
            "Cache-Control": "no-store",
            **({WARNINGS: header_value("; ".join(first.warnings))} if first.warnings else {}),
            **hold.headers,
        },
    )


async def _events(
    streams: list[Items],
    envelopes: Sequence[Envelope],
    writer: answers.Stream,
    body: wire.GenerateRequest,
    valid: StillValid,
) -> AsyncIterator[str]:
    """Choices as their pieces come; every event of one names the version that answers it."""
    choices = [_Choice(i, envelopes[i].model, writer, body.offered) for i in range(len(streams))]
    finished: dict[int, Generation] = {}
    # Each write to the connection is a system call: what follows at once waits for its neighbour.
    waiting: list[str] = []
    async with aclosing(_merged(streams)) as items:
        async for index, item in items:
            if not await valid():
                yield "".join([*waiting, answers.event(errors.error_body(_REVOKED))])
                return
            if (used := envelopes[index].usage) is not None:
                choices[index].model = used.target
            if isinstance(item, Piece):
                waiting += choices[index].push(item)
                if waiting:
                    yield "".join(waiting)
                    waiting.clear()
            elif item.refusal is not None:
                waiting.append(answers.event(errors.error_body(item.refusal)))
            elif item.generation is not None:
                finished[index] = item.generation
                waiting += choices[index].finish(item.generation)
    if finished and body.stream_options is not None and body.stream_options.include_usage:
        version = next(reversed(finished.values())).version
        waiting.append(writer.usage(version, finished, body.n))
    yield "".join([*waiting, "data: [DONE]\n\n"])


class _Choice:
    """Writes one choice; holds back what may turn out to be a tool call."""

    def __init__(self, index: int, model: str, writer: answers.Stream, offer: Offer | None) -> None:
        self.index, self.model = index, model
        """What was asked for, until the engine has admitted the request to a version."""
        self._writer, self._offer = writer, offer
        self._opened = not writer.chat
        self._held: list[Piece] = []
        self._holding = offer is not None

    def push(self, piece: Piece) -> list[str]:
        """The events a new piece makes possible."""
        opening = self._opening()
        if not self._holding:
            return [*opening, self._piece(piece)]
        assert self._offer is not None
        self._held.append(piece)
        text = self._text()
        if self._offer.choice != "auto" or OPEN in text or may_be_call(text):
            return opening
        self._holding = False
        return [*opening, *(self._piece(held) for held in self._held)]

    def finish(self, generation: Generation) -> list[str]:
        """The last events."""
        reason, last = generation.finish_reason, self._opening()
        if self._holding and self._offer is not None:
            words, calls = self._offer.read(self._text())
            tokens = [token for piece in self._held for token in piece.tokens]
            if words:
                last.append(self._piece(Piece(words, () if calls else tuple(tokens))))
            if calls:
                reason = "tool_calls"
                last.append(self._writer.calls(self.index, self.model, calls))
        return [*last, self._writer.closing(self.index, generation.version, reason)]

    def _opening(self) -> list[str]:
        """The event that names the role, before any other of a chat."""
        if self._opened:
            return []
        self._opened = True
        return [self._writer.opening(self.index, self.model)]

    def _text(self) -> str:
        return "".join(piece.text for piece in self._held)

    def _piece(self, piece: Piece) -> str:
        tokens: Sequence[TokenLogprob] = piece.tokens
        return self._writer.piece(self.index, self.model, piece.text, tokens)


async def _merged(streams: list[Items]) -> AsyncGenerator[tuple[int, Piece | Envelope], None]:
    """Items of every stream with its place, as they come; closes them all when it is closed."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as items:
            async for item in items:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Piece | Envelope] | None] = asyncio.Queue(_AHEAD)

    async def pump(index: int) -> None:
        try:
            async with aclosing(streams[index]) as items:
                async for item in items:
                    await queue.put((index, item))
        finally:
            if not closing:
                await queue.put(None)

    closing = False
    pumps = [asyncio.ensure_future(pump(index)) for index in range(len(streams))]
    try:
        left = len(pumps)
        while left:
            found = await queue.get()
            if found is None:
                left -= 1
            else:
                yield found
        for done in pumps:
            await done  # raises what went wrong in it
    finally:
        closing = True
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
