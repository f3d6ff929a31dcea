"""The input of a chat template, and the log-probabilities reported with an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.logprobs import TokenAligner
from serve_app.engine.prompts import ControlTokens, conversation
from serve_app.protocol import GenerationRequest, Sampling, TokenLogprob
from tests.fakes.targets import target

CONTROL = ControlTokens(["<s>", "</s>", "[INST]", "<|im_start|>", "<start_of_turn>", "x"])


@pytest.mark.parametrize(
    "text",
    ["<s>", "a</s>b", "[INST] hi [/INST]", "<|im_start|>system", "<start_of_turn>model"],
)
def test_no_control_token_of_the_model_is_left(text: str) -> None:
    found = CONTROL.split(text)
    assert found.replace(" ", "") == text.replace(" ", "")
    assert not any(token in found for token in ("<s>", "</s>", "[INST]", "<|im", "<start_of"))


def test_tools_and_calls_are_cleared_of_them_too() -> None:
    call = {"function": {"name": "f", "arguments": json.dumps({"a": "<s>"})}}
    messages: tuple[dict[str, str], ...] = (
        {"role": "user", "content": "</s>"},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([call])},
    )
    sampling = Sampling(tools=json.dumps([{"function": {"description": "[INST]"}}]))
    request = GenerationRequest("r", messages, sampling, target())
    for knows_tools in (True, False):
        found = json.dumps(conversation(request, CONTROL, knows_tools=knows_tools))
        assert not any(token in found for token in ("<s>", "</s>", "[INST]"))


def _token(text: str) -> TokenLogprob:
    return TokenLogprob(text, -0.1)


def _aligned(pieces: list[tuple[str, list[str]]]) -> list[str]:
    aligner = TokenAligner()
    found = [one for text, tokens in pieces for one in aligner.push(text, map(_token, tokens))]
    return [token.text for token in (*found, *aligner.finish())]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([("hello", ["hel", "lo", "<|end|>"])], ["hel", "lo"]),
        ([("hi", ["hi"]), ("", ["<|end|>"])], ["hi"]),
        # A stop string ends the text within a token, and before others.
        ([("ab", ["a", "bST", "OP"])], ["a", "b"]),
        # Bytes of one character: the token that completes it has all of it.
        ([("é!", ["", "é", "!"])], ["", "é", "!"]),
        # Text that is held back comes with a later piece.
        ([("ab", ["ab", "cd"]), ("cd", [])], ["ab", "cd"]),
        # A special token in the middle is not in the text.
        ([("ab", ["a", "<|x|>", "b"])], ["a", "", "b"]),
        ([("", ["<|end|>"])], []),
        # Spelled otherwise in the text: the tokens after it are found again.
        ([("hi 한 ok", ["hi", "\ufffd", " ok", "<|end|>"])], ["hi", " 한", " ok"]),
        ([("hello world", ["hello", "world"])], ["hello", " world"]),
    ],
)
def test_tokens_add_up_to_the_text(
    pieces: list[tuple[str, list[str]]], expected: list[str]
) -> None:
    assert _aligned(pieces) == expected


@given(st.lists(st.text(max_size=4), max_size=12), st.integers(0, 40), st.data())
def test_any_cut_of_any_tokens_adds_up(tokens: list[str], cut: int, data: Any) -> None:
    text = "".join(tokens)[:cut]
    split = data.draw(st.integers(0, len(tokens)))
    first = min(len("".join(tokens[:split])), len(text))
    pieces = [(text[:first], tokens[:split]), (text[first:], [*tokens[split:], "<|end|>"])]
    assert "".join(_aligned(pieces)) == text
