"""What real clients send: nulls, harmless fields, odd encodings; and how each mistake is named."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import completion_create_params as text_params
from openai.types import embedding_create_params as embedding_params
from openai.types.chat import completion_create_params as chat_params

from cluster.records.limits import Limits
from cluster.records.trace import FeedbackTrace
from serve_app.config import GatewayConfig
from serve_app.gateway import answers
from serve_app.gateway.admin_wire import UpdateKey
from serve_app.gateway.leniency import WireModel
from serve_app.gateway.wire import ChatRequest, CompletionRequest, EmbeddingsRequest
from tests.serve_app.test_gateway import GOOD, World

TABLE = Path(__file__).resolve().parents[2] / "docs" / "openai-compatibility.md"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=world.app),
        base_url="http://test",
        headers={"Authorization": "Bearer hr-user"},
    ) as client:
        yield client


async def _chat(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={**GOOD, **body})


# -- null is not given ------------------------------------------------------------------------

_OPTIONAL = sorted(ChatRequest.model_fields.keys() - {"model", "messages"})


@pytest.mark.parametrize("field", [*_OPTIONAL, "functions", "logit_bias", "audio", "store"])
async def test_null_says_nothing_of_a_chats_field(http: httpx.AsyncClient, field: str) -> None:
    answer = await _chat(http, **{field: None})
    assert answer.status_code == 200, answer.text
    assert "x-headrace-warnings" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "auto", "prompt": "x", "logprobs": None, "suffix": None}),
        ("/v1/embeddings", {"model": "all-minilm-l6-v2", "input": "x", "encoding_format": None}),
        ("/v1/embeddings", {"model": "all-minilm-l6-v2", "input": "x", "dimensions": None}),
        ("/v1/chat/completions", {**GOOD, "stream_options": {"include_usage": None}}),
        ("/v1/chat/completions", {**GOOD, "metadata": {"a": None, "b": "c"}}),
        (
            "/v1/chat/completions",
            {**GOOD, "messages": [{**HI[0], "name": None, "tool_calls": None}]},
        ),
    ],
)
async def test_null_says_nothing_anywhere(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text


def test_a_limit_ends_by_a_word_and_not_by_null() -> None:
    before = Limits(rpm=5, tpm=7, max_usd=1.0, period_s=60.0)
    said: dict[str, Any] = {"key": "k", "rpm_limit": None, "max_budget": None}
    assert UpdateKey.model_validate({**said, "budget_duration": None}).limits(before) == before
    ended = UpdateKey.model_validate({**said, "rpm_limit": "none", "budget_duration": "none"})
    assert ended.limits(before) == Limits(tpm=7, max_usd=1.0)
    with pytest.raises(ValueError, match="rpm_limit"):
        UpdateKey.model_validate({"key": "k", "rpm_limit": "never"})


# -- harmless fields --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "warned"),
    [
        ({"store": False}, ""),
        ({"store": True}, "store"),
        ({"service_tier": "auto"}, ""),
        ({"service_tier": "flex"}, "service_tier"),
        ({"logit_bias": {}}, ""),
        ({"functions": None, "function_call": "auto"}, ""),
        ({"reasoning_effort": "low", "verbosity": "low"}, "reasoning_effort, verbosity"),
        (
            {"prompt_cache_key": "k", "safety_identifier": "u"},
            "prompt_cache_key, safety_identifier",
        ),
        ({"tools": []}, ""),
        ({"modalities": ["text"]}, ""),
        ({"stream_options": {}}, ""),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "name": "ann",
                        "content": [
                            {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
                        ],
                    }
                ]
            },
            "messages.0.content.0.cache_control, messages.0.name",
        ),
    ],
)
async def test_what_asks_for_nothing_is_accepted(
    http: httpx.AsyncClient, body: dict[str, Any], warned: str
) -> None:
    answer = await _chat(http, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-headrace-warnings", "") == (warned and f"ignored: {warned}")


async def test_a_stream_warns_as_well(http: httpx.AsyncClient) -> None:
    answer = await _chat(http, stream=True, reasoning_effort="low")
    assert answer.headers["x-headrace-warnings"] == "ignored: reasoning_effort"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"top_k": 5}, "top_k"),
        ({"messages": [{**HI[0], "function_call": {"name": "f"}}]}, "messages.0.function_call"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    http: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await _chat(http, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    assert error["message"] == f"{field}: not supported"


@pytest.mark.parametrize(
    ("params", "shapes"),
    [
        (chat_params.CompletionCreateParamsBase, (ChatRequest,)),
        (text_params.CompletionCreateParamsBase, (CompletionRequest,)),
        (embedding_params.EmbeddingCreateParams, (EmbeddingsRequest,)),
    ],
)
def test_the_table_names_every_field_of_openais_client(
    params: Any, shapes: tuple[type[WireModel], ...]
) -> None:
    """Obeyed, ignored or refused: the page says which, and it is what the code does."""
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (\w+)", TABLE.read_text(), re.MULTILINE))
    for name in {*params.__annotations__, "stream"}:
        if name == "stream" and EmbeddingsRequest in shapes:
            continue
        shape = shapes[0]
        expected = (
            "obeyed"
            if name in shape.model_fields
            else "ignored"
            if name in shape.IGNORED
            else "refused"
        )
        shown = rows.get(f"{shape.__name__}.{name}") or rows.get(name)
        assert shown == expected, f"{shape.__name__}.{name}: {shown}, but it is {expected}"


# -- errors name the cause --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "see"},
                            {"type": "image_url", "image_url": {"url": "x"}},
                        ],
                    }
                ]
            },
            "messages.0.content.1.type",
            "parts of type 'image_url' are not supported; send text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "foo": 1}]}]},
            "messages.0.content.0.foo",
            "not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
            "Field required",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid string"),
        ({"messages": [{"role": "user"}]}, "messages.0", "a message needs content"),
        ({"messages": "hi"}, "messages", "valid array"),
        ({"stop": ["a", 5]}, "stop.1", "valid string"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "Field required"),
        ({"temperature": "hot"}, "temperature", "should be a number"),
        ({"n": True}, "n", "should be a number"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"metadata": {"a": 1}}, "metadata.a", "valid string"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools.0.function.name",
            "pattern",
        ),
    ],
)
async def test_a_mistake_is_named_by_its_path_in_the_request(
    http: httpx.AsyncClient, body: dict[str, Any], param: str, words: str
) -> None:
    answer = await _chat(http, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "auto", "prompt": [1, 2, 3]}, "prompt"),
        ("/v1/completions", {"model": "auto", "prompt": [[1, 2], [3]]}, "prompt"),
        ("/v1/embeddings", {"model": "all-minilm-l6-v2", "input": [[1, 2]]}, "input"),
        ("/v1/embeddings", {"model": "all-minilm-l6-v2", "input": [7]}, "input"),
    ],
)
async def test_token_ids_are_refused_as_token_ids(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    error = (await http.post(path, json=body)).json()["error"]
    assert error["param"] == param
    assert "token ids are not supported; send text" in error["message"]


_BODY = json.dumps(GOOD).encode()


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(_BODY), 200),
        ("deflate", zlib.compress(_BODY), 200),
        ("deflate", _raw_deflate(_BODY), 200),
        ("identity", _BODY, 200),
        ("br", _BODY, 415),
        ("gzip, gzip", gzip.compress(gzip.compress(_BODY)), 415),
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(_BODY)[:-9], 400),
        ("gzip", gzip.compress(b" " * 50_000_000), 413),
    ],
)
async def test_compressed_bodies_are_read_within_the_bound(
    http: httpx.AsyncClient, encoding: str, body: bytes, status: int
) -> None:
    answer = await http.post(
        "/v1/chat/completions",
        content=body,
        headers={"Content-Encoding": encoding, "Content-Type": "application/json"},
    )
    assert answer.status_code == status, answer.text
    if status == 415:
        assert "content encoding" in answer.json()["error"]["message"]


async def test_broken_json_is_named_with_its_place(http: httpx.AsyncClient) -> None:
    error = (await http.post("/v1/chat/completions", content=b'{"model": }')).json()["error"]
    assert error["code"] == "invalid_json"
    assert "line 1 column" in error["message"]


# -- loose ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("rating", [True, "5", 0, 6, 2.5])
async def test_a_rating_is_a_number_of_one_to_five(http: httpx.AsyncClient, rating: Any) -> None:
    body = {"trace_id": "tr-1", "model": "inventory@1", "rating": rating}
    answer = await http.post("/v1/feedback", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "rating")


async def test_the_base_models_answer_takes_feedback(world: World, http: httpx.AsyncClient) -> None:
    body = {"trace_id": "tr-1", "model": "mini", "disliked": True, "rating": None}
    answer = await http.post("/v1/feedback", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["counted"] is False
    event = world.audited[-1].event
    assert isinstance(event, FeedbackTrace)
    assert event.outcomes == {"disliked": True}


async def test_one_model_is_described_by_its_name(http: httpx.AsyncClient) -> None:
    for name in ("auto", "mini", "inventory", "inventory@1", "all-minilm-l6-v2"):
        answer = await http.get(f"/v1/models/{name}")
        assert answer.status_code == 200, name
        assert name in (answer.json()["id"], answer.json()["root"])
    for name in ("nothing", "inventory@9", "a/b"):
        answer = await http.get(f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/feedback", "POST"),
        ("POST", "/health", "GET"),
    ],
)
async def test_a_wrong_method_is_refused_with_the_allowed_ones(
    http: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == 405
    assert allowed in answer.headers["Allow"]


async def test_browsers_are_let_in_by_origin_and_not_by_default(http: httpx.AsyncClient) -> None:
    asked = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    assert (await http.options("/v1/chat/completions", headers=asked)).status_code == 405
    world = World(config=GatewayConfig(cors_origins=("https://app.example.com",)))
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        preflight = await client.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example.com"
        other = {**asked, "Origin": "https://evil.example.com"}
        assert (await client.options("/v1/chat/completions", headers=other)).status_code == 400
        answer = await client.post(
            "/v1/chat/completions",
            json=GOOD,
            headers={"Authorization": "Bearer hr-user", "Origin": "https://app.example.com"},
        )
        assert "x-headrace-trace-id" in answer.headers["access-control-expose-headers"]


def test_an_event_is_one_line_however_lines_are_split() -> None:
    text = "a\u2028b\u2029c\u0085d\x0be\x1cf\r\ng"
    event = answers.event({"text": text})
    assert len(event.splitlines()) == 2
    assert json.loads(event.removeprefix("data: "))["text"] == text


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "refusal": "I cannot"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "index": 0,
                    "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}},
                }
            ],
        },
    ],
)
async def test_an_answer_may_be_sent_back_as_a_client_keeps_it(
    http: httpx.AsyncClient, message: dict[str, Any]
) -> None:
    answer = await _chat(http, messages=[*HI, message, *HI], top_k=-1, repetition_penalty=1.0)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "auto", "prompt": ""}, "prompt"),
        ("/v1/embeddings", {"model": "all-minilm-l6-v2", "input": ["a", ""]}, "input"),
        ("/v1/chat/completions", {**GOOD, "tool_choice": "required"}, "tool_choice"),
        (
            "/v1/chat/completions",
            {**GOOD, "messages": [{"role": "user", "content": {"type": "text", "text": "x"}}]},
            "messages.0.content",
        ),
        ("/v1/completions", {"model": "auto", "prompt": [True]}, "prompt.0"),
    ],
)
async def test_a_refusal_names_the_field_that_was_sent(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_compressed_bodies_of_several_members_are_read(http: httpx.AsyncClient) -> None:
    half = len(_BODY) // 2
    packed = gzip.compress(_BODY[:half]) + gzip.compress(_BODY[half:]) + b"\0" * 16
    for encoding, body in (
        ("gzip", packed),
        ("identity, gzip", packed),
        ("", b"\xef\xbb\xbf" + _BODY),
    ):
        answer = await http.post(
            "/v1/chat/completions", content=body, headers={"Content-Encoding": encoding}
        )
        assert answer.status_code == 200, answer.text


async def test_all_methods_of_a_path_are_allowed_by_name(http: httpx.AsyncClient) -> None:
    answer = await http.put("/v1/labels")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, POST")
