"""Tools through the official client, and how calls are read out of what a model writes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from serve_app import tools
from tests.serve_app.test_gateway import World

ASK: Any = [{"role": "user", "content": "is size nine in stock? call 415-555-0132"}]
STOCK: Any = {
    "type": "function",
    "function": {
        "name": "stock",
        "description": "Units of an article in a store",
        "parameters": {"type": "object", "properties": {"sku": {"type": "string"}}},
    },
}
HOURS: Any = {"type": "function", "function": {"name": "hours"}}
CALL = (
    '<tool_call>{"name": "stock", "arguments": {"sku": "b-9", "notify": "[PHONE_1]"}}</tool_call>'
)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def client(world: World) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport) as http:
        yield openai.AsyncOpenAI(
            base_url="http://test/v1",
            api_key="hr-user",
            max_retries=0,
            http_client=http,  # type: ignore[arg-type]
        )


async def test_a_call_comes_back_with_the_callers_own_values(
    world: World, client: openai.AsyncOpenAI
) -> None:
    world.engine.answer = CALL
    answer = await client.chat.completions.create(
        model="auto", messages=ASK, tools=[STOCK], tool_choice="auto"
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    call: Any = choice.message.tool_calls[0]
    assert call.function.name == "stock"
    assert json.loads(call.function.arguments) == {"sku": "b-9", "notify": "415-555-0132"}
    assert "415-555" not in str(world.audited)
    offered = world.engine.requests[-1].sampling.tools
    assert offered is not None
    assert json.loads(offered)[0]["function"]["name"] == "stock"


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["stock", "hours"]),
        ({"type": "function", "function": {"name": "hours"}}, ["hours"]),
    ],
)
async def test_a_tool_that_must_be_called_is_a_schema(
    world: World, client: openai.AsyncOpenAI, choice: Any, names: list[str]
) -> None:
    world.engine.answer = '{"name": "hours", "arguments": {}}'
    answer = await client.chat.completions.create(
        model="auto", messages=ASK, tools=[STOCK, HOURS], tool_choice=choice
    )
    schema = json.loads(world.engine.requests[-1].sampling.json_schema or "")
    variants = schema.get("anyOf", [schema])
    assert [variant["properties"]["name"]["const"] for variant in variants] == names
    calls: Any = answer.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["hours"]


async def test_no_tools_are_shown_where_none_may_be_called(
    world: World, client: openai.AsyncOpenAI
) -> None:
    world.engine.answer = CALL
    answer = await client.chat.completions.create(
        model="auto", messages=ASK, tools=[STOCK], tool_choice="none"
    )
    assert world.engine.requests[-1].sampling.tools is None
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    ("answer", "words", "called"),
    [
        (CALL, "", ["stock"]),
        ("We open at nine.", "We open at nine.", []),
        ("Let me see. " + CALL, "Let me see. " + CALL.replace("[PHONE_1]", "415-555-0132"), []),
        ("<tool_talk> is no call", "<tool_talk> is no call", []),
    ],
)
async def test_streams_hold_back_what_may_be_a_call(
    world: World, client: openai.AsyncOpenAI, answer: str, words: str, called: list[str]
) -> None:
    world.engine.answer = answer
    stream = await client.chat.completions.create(
        model="auto", messages=ASK, tools=[STOCK], stream=True
    )
    text, names, reason = "", list[str](), ""
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            names += [c.function.name or "" for c in choice.delta.tool_calls or [] if c.function]
            reason = choice.finish_reason or reason
    assert (text, names) == (words, called)
    assert reason == ("tool_calls" if called else "stop")


async def test_results_of_a_call_go_back_to_the_model_masked(
    world: World, client: openai.AsyncOpenAI
) -> None:
    call = {"name": "stock", "arguments": '{"mail": "ann@shop.example.com"}'}
    messages: Any = [
        *ASK,
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c1", "content": "4 left, ask 415-555-0177"},
    ]
    await client.chat.completions.create(model="auto", messages=messages, tools=[STOCK])
    seen = str(world.engine.prompts[-1])
    assert "tool_calls" in seen
    assert "ann@" not in seen
    assert "0177" not in seen


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [STOCK, STOCK]}, "same name"),
        (
            {"tools": [STOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "not among the tools",
        ),
        ({"messages": [{"role": "tool", "content": "4"}]}, "tool_call_id"),
        ({"messages": [{"role": "assistant"}]}, "needs content"),
    ],
)
async def test_what_does_not_fit_is_said(
    client: openai.AsyncOpenAI, extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        await client.chat.completions.create(**{"model": "auto", "messages": ASK, **extra})


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        "<tool_call>not json</tool_call>",
        '<tool_call>{"name": "stock", "arguments": []}</tool_call>',
        "<tool_call>",
        '<tool_call>["stock"]</tool_call>',
    ],
)
def test_what_is_no_call_stays_words(text: str) -> None:
    assert tools.read(text, {"stock"}, forced=False) == (text, [])
    assert tools.read("so: " + text + " it is", {"stock"}, forced=False)[1] == []


def test_words_between_calls_are_kept() -> None:
    words, calls = tools.read(f"first {CALL} then {CALL} done", {"stock"}, forced=False)
    assert words == "first  then  done"
    assert [call.name for call in calls] == ["stock", "stock"]


def test_a_template_without_tools_gets_them_as_text() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": json.dumps([{"function": {"name": "f"}}]),
        },
        {"role": "tool", "content": "4", "tool_call_id": "c"},
    ]
    plain = tools.in_words(messages, "[...]")
    assert [message["role"] for message in plain] == ["system", "user", "assistant", "user"]
    assert "[...]" in plain[0]["content"]
    assert plain[2]["content"] == '<tool_call>{"name": "f"}</tool_call>'
    assert plain[3]["content"] == "<tool_response>4</tool_response>"
    assert tools.structured(messages)[1]["tool_calls"] == [{"function": {"name": "f"}}]


def test_references_of_a_tool_point_into_the_tool() -> None:
    parameters = {
        "$defs": {"A": {"type": "string"}},
        "properties": {"a": {"$ref": "#/$defs/A"}, "self": {"$ref": "#"}},
    }
    offered = [{"function": {"name": name, "parameters": parameters}} for name in ("f", "g")]
    for choice, root in (
        ("f", "#/properties/arguments"),
        ("required", "#/anyOf/1/properties/arguments"),
    ):
        schema = json.loads(tools.forced_schema(offered, choice) or "")
        found = schema.get("anyOf", [schema])[-1]["properties"]["arguments"]["properties"]
        assert found == {"a": {"$ref": f"{root}/$defs/A"}, "self": {"$ref": root}}


@pytest.mark.parametrize(
    "text", ['{"name": ["stock"]}', '{"name": "stock", "arguments": {"a": 1e400}}', "[]", "{}"]
)
def test_a_forced_answer_that_is_no_call_stays_words(text: str) -> None:
    assert tools.read(text, {"stock"}, forced=True) == (text, [])


@pytest.mark.parametrize(("parallel", "calls"), [(True, 2), (False, 1)])
async def test_one_answer_makes_as_many_calls_as_it_may(
    world: World, client: openai.AsyncOpenAI, parallel: bool, calls: int
) -> None:
    world.engine.answer = CALL + CALL
    answer = await client.chat.completions.create(
        model="auto", messages=ASK, tools=[STOCK], parallel_tool_calls=parallel
    )
    assert len(answer.choices[0].message.tool_calls or ()) == calls
