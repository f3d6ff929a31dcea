"""The OpenAI surface through the official client, over a fake engine and no Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from cluster.records.trace import Span
from serve_app.gateway import answers
from serve_app.gateway.completions import response_headers
from serve_app.protocol import Envelope, Generation, Sampling
from tests.serve_app.test_gateway import World

SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"type": "object"}},
}
ASK: Any = [{"role": "user", "content": "hi there"}]


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    return World(answer_values=getattr(request, "param", "show"))


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


async def test_each_choice_passes_the_pipeline_and_has_its_own_seed(
    world: World, client: openai.AsyncOpenAI
) -> None:
    answer = await client.chat.completions.create(model="auto", messages=ASK, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(r.sampling.seed or 0 for r in world.engine.requests) == [7, 8, 9]
    assert len(world.audited) == 3
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 21)
    counted = [envelope.usage for envelope in world.audited]
    assert sum(used.input_tokens for used in counted if used) == 5, "the prompt is billed once"
    assert sum(used.output_tokens for used in counted if used) == 21


async def test_logprobs_are_returned_by_token(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="auto", messages=ASK, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].token == '{"intent":'
    assert [option.token for option in logprobs.content[0].top_logprobs] == ['{"intent":', "other"]
    plain = await client.chat.completions.create(model="auto", messages=ASK)
    assert plain.choices[0].logprobs is None


@pytest.mark.parametrize("world", ["mask"], indirect=True)
async def test_logprobs_do_not_tell_what_the_answer_may_not(
    world: World, client: openai.AsyncOpenAI
) -> None:
    world.engine.answer = "mail ann@shop.example.com"
    answer = await client.chat.completions.create(model="auto", messages=ASK, logprobs=True)
    assert "ann@" not in answer.model_dump_json()
    assert answer.choices[0].logprobs is None


async def test_a_schema_reaches_the_engine_and_a_bad_one_the_client(
    world: World, client: openai.AsyncOpenAI
) -> None:
    await client.chat.completions.create(model="auto", messages=ASK, response_format=SCHEMA)  # type: ignore[call-overload]
    assert world.engine.requests[-1].sampling.json_schema == '{"type": "object"}'
    bad: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "impossible"}},
    }
    with pytest.raises(openai.BadRequestError, match="no such type"):
        await client.chat.completions.create(model="auto", messages=ASK, response_format=bad)
    assert [e.refusal.code for e in world.audited if e.refusal] == ["invalid_value"]


async def test_texts_are_continued_as_they_stand(world: World, client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="inventory", prompt=["once upon", "in the"], n=2, logprobs=1, stop=["."]
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == world.engine.answer
    assert answer.choices[0].logprobs is not None
    assert (answer.choices[0].logprobs.text_offset or [])[:2] == [0, len('{"intent":')]
    assert all(not request.chat for request in world.engine.requests)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 28)


def test_every_choice_names_its_version_where_several_answered() -> None:
    def found(*versions: str) -> Any:
        answered = [
            (Generation("a", v, 1, 1, "stop", 0.0, 0.0, None, 1.0, "r"), "a") for v in versions
        ]
        return answers.completion("tr-1", 1, answered, len(versions), chat=True)

    body = found("care@1", "care@2")
    assert body["model"] == "care@1"
    assert [choice["model"] for choice in body["choices"]] == ["care@1", "care@2"]
    assert all("model" not in choice for choice in found("care@1", "care@1")["choices"])


async def test_text_streams_have_text(world: World, client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="inventory", prompt="once", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == world.engine.answer
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].model == "inventory@1"


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_come_in_order_and_are_recorded_masked(
    world: World, client: openai.AsyncOpenAI, encoding: Any
) -> None:
    found = await client.embeddings.create(
        model="all-minilm-l6-v2",
        input=["abc", "my number is 415-555-0132"],
        encoding_format=encoding,
    )
    assert [item.index for item in found.data] == [0, 1]
    if encoding == "float":
        assert found.data[0].embedding == [3.0, 0.5]
    assert found.usage.prompt_tokens == 5
    assert len(world.audited) == 2
    assert "555-01" not in str(world.audited)
    assert world.engine.requests == []


async def test_embeddings_know_one_model(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="all-minilm-l6-v2"):
        await client.embeddings.create(model="auto", input="x")


async def test_a_stream_carries_several_choices(world: World, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="auto", messages=ASK, n=3, stream=True, stream_options={"include_usage": True}
    )
    texts, reasons = ["", "", ""], list[str]()
    opened = list[int]()
    async for chunk in stream:
        assert chunk.model == "inventory@1"
        for choice in chunk.choices:
            opened += [choice.index] if choice.delta.role else []
            texts[choice.index] += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
        usage = chunk.usage
    assert texts == [world.engine.answer] * 3
    assert reasons == ["stop"] * 3
    assert sorted(opened) == [0, 1, 2]
    assert len(world.audited) == 3
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 21)


async def test_a_blocked_choice_refuses_the_stream_before_it_starts(
    world: World, client: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": " "}], n=2, stream=True
        )
    assert [e.refusal.code for e in world.audited if e.refusal] == ["empty_messages"] * 2


async def _streamed_tokens(client: openai.AsyncOpenAI) -> tuple[str, str]:
    stream = await client.chat.completions.create(
        model="auto", messages=ASK, stream=True, logprobs=True
    )
    text = tokens = ""
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            told = choice.logprobs.content if choice.logprobs else None
            tokens += "".join(token.token for token in told or [])
            assert text.startswith(tokens)
    return text, tokens


async def test_a_stream_tells_logprobs_with_the_text_they_belong_to(
    world: World, client: openai.AsyncOpenAI
) -> None:
    text, tokens = await _streamed_tokens(client)
    assert text == tokens == world.engine.answer


@pytest.mark.parametrize("world", ["mask"], indirect=True)
async def test_a_stream_tells_no_token_of_what_was_masked(
    world: World, client: openai.AsyncOpenAI
) -> None:
    world.engine.answer = "well then, mail ann@shop.example.com today, or tomorrow"
    text, tokens = await _streamed_tokens(client)
    assert "[EMAIL_1]" in text
    assert "well then, mail ".startswith(tokens)
    assert tokens


async def test_headers_tell_version_route_and_times(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="auto", messages=ASK)
    assert raw.headers["x-headrace-model"] == "inventory@1"
    assert raw.headers["x-headrace-route"] == "inventory; intent=x; confidence=1.000"
    assert float(raw.headers["x-headrace-overhead-ms"]) >= 0
    assert "routing;dur=" in raw.headers["server-timing"]


def test_an_attempt_that_failed_is_no_overhead() -> None:
    envelope = Envelope("tr-1", 0.0, "acme", {}, "auto", [], Sampling())
    envelope.spans = [
        Span("routing", 5.0),
        Span("support@4", 3000.0, outcome="EngineFailed", parent="generation"),
        Span("generation", 3400.0),
    ]
    headers = response_headers(envelope)
    assert headers["x-headrace-overhead-ms"] == "5.00"
    assert headers["Server-Timing"] == "routing;dur=5.00, generation;dur=3400.00"


def _generation(prompt: int, written: int) -> Generation:
    return Generation("a", "m", prompt, written, "stop", -0.1, -0.1, 1.0, 2.0, "r")


def test_each_prompt_counts_once_whichever_of_its_answers_came() -> None:
    # Two prompts of 10 and 30 tokens, two answers each, in the order they ended; one failed.
    came = {3: _generation(30, 4), 0: _generation(10, 1), 2: _generation(30, 3)}
    assert answers.usage(came, 2) == {
        "prompt_tokens": 40,
        "completion_tokens": 8,
        "total_tokens": 48,
    }
