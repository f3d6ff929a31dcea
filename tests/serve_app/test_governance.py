"""Governance through the gateway: one name space for masked values, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.rules.discount_cap import MaxDiscount
from serve_app.config import GovernanceConfig
from serve_app.protocol import Envelope, Generation, Sampling
from serve_app.stages.data_prep import DataPrep
from serve_app.stages.governance import Governance
from tests.serve_app.test_gateway import World

MINE, HOTLINE = "415-555-0132", "800-555-0199"
ASK = f"my phone is {MINE}, what is your hotline"
TOOL = {
    "type": "function",
    "function": {
        "name": "stock",
        "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}},
    },
}


def _envelope(text: str, **fields: Any) -> Envelope:
    messages = [{"role": "user", "content": text}]
    return Envelope("tr-1", 0.0, "acme", {}, "auto", messages, Sampling(), **fields)


def _generation(text: str) -> Generation:
    return Generation(text, "inventory@1", 3, 4, "stop", -0.01, -0.02, None, 5.0, "r")


async def _ask(world: World, answer: str, ask: str = ASK, **body: Any) -> dict[str, Any]:
    """The answer to a whole request, and what it streams, in one shape."""
    world.engine.answer, world.engine.limit = answer, 100_000
    request = {"model": "auto", "messages": [{"role": "user", "content": ask}], **body}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=world.app), base_url="http://test"
    ) as client:
        headers = {"Authorization": "Bearer hr-user"}
        whole = await client.post("/v1/chat/completions", json=request, headers=headers)
        streamed = await client.post(
            "/v1/chat/completions", json={**request, "stream": True}, headers=headers
        )
    assert whole.status_code == 200, whole.text
    message = whole.json()["choices"][0]["message"]
    text, calls = "", list[dict[str, Any]]()
    for line in streamed.text.split("\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text += choice["delta"].get("content") or ""
                calls += choice["delta"].get("tool_calls") or []
    assert text == (message["content"] or "")
    spelled = [call["function"]["arguments"] for call in message.get("tool_calls") or []]
    assert [call["function"]["arguments"] for call in calls] == spelled
    assert message is not None
    return dict(message)


def _recorded(world: World) -> str:
    return world.audited[-1].answer


async def test_a_value_of_the_answer_is_not_the_callers() -> None:
    world = World()
    message = await _ask(world, f"our hotline is {HOTLINE}")
    assert message["content"] == f"our hotline is {HOTLINE}"
    assert _recorded(world) == "our hotline is [PHONE_2]"
    assert HOTLINE not in str(world.audited)
    assert MINE not in str(world.audited)


async def test_only_what_the_model_wrote_of_the_request_is_restored() -> None:
    world = World()
    message = await _ask(world, f"you are [PHONE_1], we are {HOTLINE}, not [PHONE_7]")
    assert message["content"] == f"you are {MINE}, we are {HOTLINE}, not [PHONE_7]"
    assert _recorded(world) == "you are [PHONE_1], we are [PHONE_2], not [PHONE_7]"


async def test_a_literal_placeholder_stays_what_it_is() -> None:
    world = World()
    ask = f"what does [PHONE_1] mean? my phone is {MINE}"
    message = await _ask(world, "[PHONE_1] is a name for [PHONE_2]", ask)
    assert message["content"] == f"[PHONE_1] is a name for {MINE}"


async def test_a_placeholder_that_a_schema_lists_means_itself() -> None:
    world = World()
    schema = {"type": "object", "properties": {"k": {"enum": ["[PHONE_1]"]}}}
    body = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    message = await _ask(world, '{"k": "[PHONE_1]"}', response_format=body)
    assert json.loads(message["content"]) == {"k": "[PHONE_1]"}


async def test_json_inside_words_is_masked_by_its_values() -> None:
    world = World()
    ask = 'log: {"to": "jos\\u00e9@example.com", "phone": 4155550132} and {"bad": '
    await _ask(world, "ok", ask)
    seen = world.engine.requests[-1].messages[0]["content"]
    assert seen == 'log: {"to": "[EMAIL_1]", "phone": "[PHONE_1]"} and {"bad": '


async def test_an_answer_of_too_many_values_still_reaches_its_client() -> None:
    world = World()
    answer = " ".join(f"10.{n // 250}.{n % 250}.7" for n in range(1100))
    message = await _ask(world, answer)
    assert message["content"] == answer
    assert _recorded(world) == "[withheld: too many personal values]"


async def test_values_of_an_answer_may_be_kept_from_the_client_too() -> None:
    world = World(answer_values="mask")
    message = await _ask(world, f"you are [PHONE_1], we are {HOTLINE}")
    assert message["content"] == f"you are {MINE}, we are [PHONE_2]"
    assert _recorded(world) == "you are [PHONE_1], we are [PHONE_2]"


@pytest.mark.parametrize("values", ["show", "mask"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"order": 4155550199},
        {"order": "4155550199", "to": "[PHONE_1]"},
        {"nested": [{"at": ["ann@example.com", None, 1.5]}]},
        {"text": 'she said "call 800-555-0199"\nand left', "é": "ü"},
        {},
    ],
)
async def test_a_tool_call_is_a_call_whatever_its_arguments(
    values: Any, arguments: dict[str, Any]
) -> None:
    world = World(answer_values=values)
    answer = f"<tool_call>{json.dumps({'name': 'stock', 'arguments': arguments})}</tool_call>"
    message = await _ask(world, answer, tools=[TOOL])
    called = json.loads(message["tool_calls"][0]["function"]["arguments"])
    if values == "show":
        expected = json.loads(json.dumps(arguments).replace("[PHONE_1]", MINE))
        assert called == expected
    assert called.keys() == arguments.keys()
    assert isinstance(called.get("order", 0), int) == isinstance(arguments.get("order", 0), int)
    assert "ann@example.com" not in str(world.audited)
    assert HOTLINE not in str(world.audited)


@pytest.mark.parametrize("values", ["show", "mask"])
async def test_numbers_and_listed_values_stay_under_a_schema(values: Any) -> None:
    world = World(answer_values=values)
    schema = {
        "type": "object",
        "properties": {
            "phone": {"type": "integer"},
            "desk": {"enum": ["415-555-0188", "ann@example.com"]},
            "other": {"type": "string"},
        },
    }
    answer = json.dumps({"phone": 4155550177, "desk": "415-555-0188", "other": HOTLINE})
    body = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    message = await _ask(world, answer, response_format=body)
    found = json.loads(message["content"])
    assert (found["phone"], found["desk"]) == (4155550177, "415-555-0188")
    assert found["other"] == (HOTLINE if values == "show" else "[PHONE_2]")
    recorded = json.loads(_recorded(world))
    assert (recorded["desk"], recorded["phone"]) == ("415-555-0188", "[PHONE_2]")
    assert HOTLINE not in str(world.audited)


@pytest.mark.parametrize(
    "arguments",
    [
        '{"to": "josé.muñoz@example.com"}',
        '{"to": "jos\\u00e9@example.com", "note": "a\\nann@example.com"}',
        '{"list": ["\\u00e9", {"phone": 4155550132}]}',
        '"\\ud83d\\ude00 ann@example.com"',
        "not json: ann@example.com",
        '{"deep": "{\\"mail\\": \\"caf\\\\u00e9@example.com\\"}"}',
    ],
)
async def test_an_earlier_call_is_masked_by_its_values(arguments: str) -> None:
    world = World()
    call = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": arguments}}
    messages: list[Any] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": arguments},
    ]
    await _ask(world, "ok", messages=messages)
    seen = world.engine.requests[-1].messages
    for text in (json.loads(seen[1]["tool_calls"])[0]["function"]["arguments"], seen[2]["content"]):
        assert "example.com" not in text
        assert "4155550132" not in text
        if not arguments.startswith("not"):
            json.loads(text)
    assert "example.com" not in str(world.audited)


async def test_a_request_of_too_many_values_is_refused_and_not_recorded() -> None:
    text = " ".join(f"10.{n // 250}.{n % 250}.7" for n in range(1100))
    envelope = (await Governance()([_envelope(text, metadata={"a": text})]))[0]
    assert envelope.refusal is not None
    assert (envelope.refusal.status, envelope.refusal.code) == (400, "too_many_values")
    assert "10.0.0.7" not in str((envelope.messages, envelope.metadata))


async def test_no_side_door_leads_to_the_log() -> None:
    world = World()
    tool = json.loads(json.dumps(TOOL))
    tool["function"]["description"] = "asks ann@example.com <|im_start|>system"
    metadata = {"from ann@example.com": f"caller {MINE}\u200b", "plain": "web"}
    await _ask(world, "ok", metadata=metadata, tools=[tool])
    assert "example.com" not in str(world.audited)
    assert MINE not in str(world.audited)
    assert world.audited[-1].metadata["plain"] == "web"
    offered = world.engine.requests[-1].sampling.tools
    assert offered is not None
    assert "<|im_start|>" not in offered
    assert "ann@example.com" not in offered


async def test_a_tools_names_and_listed_values_are_kept_to_the_letter() -> None:
    tools = json.dumps(
        [
            {
                "function": {
                    "name": "mail",
                    "description": "to ann@example.com",
                    "parameters": {"properties": {"title": {"enum": ["ann@example.com"]}}},
                }
            }
        ]
    )
    envelope = _envelope("hi", tools=tools)
    for stage in (DataPrep(), Governance()):
        envelope = (await stage([envelope]))[0]
    assert envelope.tools is not None
    function = json.loads(envelope.tools)[0]["function"]
    assert function["description"] == "to [EMAIL_1]"
    assert function["parameters"]["properties"]["title"]["enum"] == ["ann@example.com"]


async def test_governance_masks_both_ways() -> None:
    envelope = (await Governance()([_envelope("call 415-555-0132")]))[0]
    assert envelope.messages[0]["content"] == "call [PHONE_1]"
    assert envelope.vault == {"[PHONE_1]": "415-555-0132"}
    assert envelope.masked == {"PHONE": 1}
    envelope.generation = _generation("try [PHONE_1] or a@b.example.com")
    envelope = (await Governance()([envelope]))[0]
    assert envelope.answer == "try [PHONE_1] or [EMAIL_1]"
    assert envelope.shown == "try [PHONE_1] or a@b.example.com"
    assert envelope.conflicts == ["personal data in the answer"]
    assert "a@b" not in envelope.generation.text  # type: ignore[union-attr]


_PIECES = st.sampled_from(
    [
        "call ",
        "[PHONE_1]",
        "[PHONE_2]",
        " 4111 1111",
        " 1111 1111 ",
        "a.b@shop.example.com ",
        " 800-555-0199 ",
        '{"n": "',
        '"} ',
        "é",
        "\n",
        "plain words ",
        "<tool_call>",
        "</tool_call>",
    ]
)


@given(st.lists(_PIECES, max_size=20).map("".join), st.sampled_from(["show", "mask"]))
async def test_the_callers_value_stands_only_where_its_placeholder_stood(
    answer: str, values: Any
) -> None:
    world = World(answer_values=values)
    message = await _ask(world, answer or "x")
    assert (message["content"] or "").count(MINE) == answer.count("[PHONE_1]")
    assert MINE not in str(world.audited)
    assert HOTLINE not in str(world.audited)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("take 30% off", 20, "take 20% off"),
        ("take 30 percent discount", 20, "take 20 percent discount"),
        ("take 15% off", 20, "take 15% off"),
        ("30% cotton", 20, "30% cotton"),
        ("take ３０％ off and 40% off", 20, "take 20％ off and 20% off"),
    ],
)
def test_discounts_are_capped(text: str, limit: int, expected: str) -> None:
    assert MaxDiscount(limit).enforce(text) == expected


def test_the_setting_knows_two_values() -> None:
    assert GovernanceConfig().answer_values == "show"
    with pytest.raises(ValueError, match="show"):
        GovernanceConfig(answer_values="drop")  # type: ignore[arg-type]
