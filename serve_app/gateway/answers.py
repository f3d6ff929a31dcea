"""The OpenAI wire format on the way out: bodies of whole answers, and events of streamed ones."""

from __future__ import annotations

import json
import struct
import uuid
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from serve_app.gateway.messages import Offer
from serve_app.protocol import Generation, TokenLogprob
from serve_app.tools import ToolCall


def usage(generations: Mapping[int, Generation], choices: int = 1) -> dict[str, int]:
    """Token counts as OpenAI names them; a prompt counts once for all its `choices`.

    `generations` are by index, the choices of a prompt side by side; some may have failed.
    """
    prompts = {i // choices: generation.input_tokens for i, generation in generations.items()}
    prompt = sum(prompts.values())
    written = sum(generation.output_tokens for generation in generations.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


def completion(
    trace_id: str,
    created: int,
    answers: list[tuple[Generation, str]],
    choices: int,
    *,
    chat: bool,
    offer: Offer | None = None,
) -> dict[str, Any]:
    """A whole answer's body; `model` is the concrete version that answered.

    Where several did, of several prompts or because one was swapped in between, each choice has its
    own `model`.
    """
    generations = [generation for generation, _ in answers]
    several = len({generation.version for generation in generations}) > 1
    return {
        "id": trace_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": generations[0].version,
        "choices": [
            {
                **_choice(index, generation, text, chat=chat, offer=offer),
                **({"model": generation.version} if several else {}),
            }
            for index, (generation, text) in enumerate(answers)
        ],
        "usage": usage(dict(enumerate(generations)), choices),
    }


def _choice(
    index: int, generation: Generation, text: str, *, chat: bool, offer: Offer | None
) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": generation.finish_reason}
    if chat:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        words, calls = offer.read(text) if offer else (text, [])
        if calls:
            message = {**message, "content": words or None, "tool_calls": called(calls)}
            choice["finish_reason"] = "tool_calls"
        choice["message"] = message
        choice["logprobs"] = _chat_logprobs(generation.tokens)
    else:
        choice["text"] = text
        choice["logprobs"] = _text_logprobs(generation.tokens)
    return choice


def called(calls: list[ToolCall]) -> list[dict[str, Any]]:
    """Tool calls as an answer carries them."""
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]


def _chat_logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {
        "content": [
            {
                **_token(token.text, token.logprob),
                "top_logprobs": [_token(text, value) for text, value in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _text_logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    offsets = accumulate((len(token.text) for token in tokens[:-1]), initial=0)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": list(offsets)[: len(tokens)],
    }


def embeddings(model: str, vectors: list[bytes], encoding: str, tokens: int) -> dict[str, Any]:
    """An embeddings body; each vector is float32 bytes, `tokens` those of all the texts."""
    shown: list[Any] = [
        b64encode(vector).decode()
        if encoding == "base64"
        else list(struct.unpack(f"<{len(vector) // 4}f", vector))
        for vector in vectors
    ]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(shown)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


@dataclass(frozen=True)
class Stream:
    """Writes one streamed answer's server-sent events."""

    trace_id: str
    created: int
    chat: bool

    def opening(self, index: int, model: str) -> str:
        """The first event of a chat's choice: it names the role."""
        return self._choice(index, model, {"delta": {"role": "assistant", "content": ""}})

    def piece(self, index: int, model: str, text: str, tokens: Sequence[TokenLogprob] = ()) -> str:
        """Some text, with its tokens where they were asked for."""
        choice: dict[str, Any]
        if self.chat:
            choice = {"delta": {"content": text}, "logprobs": _chat_logprobs(tokens or None)}
        else:
            choice = {"text": text, "logprobs": _text_logprobs(tokens or None)}
        return self._choice(index, model, choice)

    def calls(self, index: int, model: str, calls: list[ToolCall]) -> str:
        """Tool calls, whole."""
        numbered = [{"index": i, **call} for i, call in enumerate(called(calls))]
        return self._choice(index, model, {"delta": {"tool_calls": numbered}})

    def closing(self, index: int, model: str, finish_reason: str) -> str:
        """The last event of a choice: `model` is the version that answered."""
        empty: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._choice(index, model, {**empty, "finish_reason": finish_reason})

    def usage(self, model: str, generations: Mapping[int, Generation], choices: int) -> str:
        """The last event of a stream whose client asked for the usage."""
        return event({**self._body(model, []), "usage": usage(generations, choices)})

    def _choice(self, index: int, model: str, choice: dict[str, Any]) -> str:
        whole = {"index": index, "finish_reason": None, "logprobs": None, **choice}
        return event(self._body(model, [whole]))

    def _body(self, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.trace_id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": model,
            "choices": choices,
        }


#: Line ends to some clients' splitters, though not to the protocol; JSON may escape them.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def event(body: dict[str, Any]) -> str:
    """A server-sent event: one line, however a client splits lines."""
    return f"data: {json.dumps(body, ensure_ascii=False).translate(_LINE_ENDS)}\n\n"
