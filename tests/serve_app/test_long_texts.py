"""Long texts: off the event loop, tenants in turn, and no work without an end."""

import asyncio
import threading
import time
from pathlib import Path

import httpx
import pytest

from cluster.governance.findings import OutOfTime, Tick
from cluster.governance.structured import mask_text
from cluster.governance.vault import TooManyValues, Vault, mask, placeholders
from serve_app import long_texts
from serve_app.config import GovernanceConfig, StageConfig
from serve_app.long_texts import Busy, LongTexts, is_long
from serve_app.pipeline.batcher import Lanes, StageBatcher
from serve_app.pipeline.steps import DATA_PREP, MASK, run
from serve_app.prompt_length import most_characters
from serve_app.protocol import Envelope, Generation, Sampling
from serve_app.stages.data_prep import DataPrep
from serve_app.stages.governance import Governance
from tests.serve_app.test_gateway import GOOD, World

#: Numbers in groups that could be many things: the slowest text known.
GROUPS = "١٢٣٤ ٥٦٧٨ ٩٠١٢\n" * 3000


def _envelope(text: str, tenant: str = "acme") -> Envelope:
    said = [{"role": "user", "content": text}]
    return Envelope(f"tr-{tenant}", 0.0, tenant, {}, "m", said, Sampling())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("do you have rain boots in size 9", False),
        ("call 415-555-0132 or 0049/5235/3000 " * 4, False),
        ("1" * 97, False),
        ("1 " * 97, True),
        ("a" * 8193, True),
        ("plain words " * 500, False),
    ],
)
def test_what_is_worked_on_at_once(text: str, expected: bool) -> None:
    assert is_long([text]) is expected


def test_many_short_texts_are_a_long_one() -> None:
    assert is_long(["1 2 3 4 5 6 7 8 9 " * 6] * 10)
    assert not is_long(["rain boots in size 9"] * 40)


@pytest.mark.parametrize("piece", ["\\", "\\u005b", "[", "{", '"', "\u0301", "1 ", "a@", "<|"])
def test_no_text_of_the_largest_size_takes_a_step_that_nothing_ends(piece: str) -> None:
    """What runs in one call of C can be ended by no tick: it has to be linear."""
    text = piece * (200_000 // len(piece))
    started = time.thread_time()

    def tick() -> None:
        if time.thread_time() - started > 0.5:
            raise OutOfTime("enough")

    try:
        mask_text(text, Vault(placeholders([text]), tick))
    except (OutOfTime, TooManyValues):
        pass
    assert time.thread_time() - started < 5


async def test_the_event_loop_goes_on_while_a_long_text_is_masked() -> None:
    governance = Governance(GovernanceConfig(limit_s=60.0))
    turns = 0
    work = asyncio.ensure_future(governance([_envelope(GROUPS)]))
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 20, "it took turns with others"
    [done] = await work
    assert done.refusal is None or done.refusal.code == "too_many_values"


async def test_work_that_takes_too_long_ends_and_nothing_of_it_is_kept() -> None:
    governance = Governance(GovernanceConfig(limit_s=0.02))
    [late] = await governance([_envelope(GROUPS)])
    assert late.refusal is not None
    assert (late.refusal.status, late.refusal.code) == (400, "text_too_complex")
    assert late.messages == [{"role": "user", "content": "[withheld: too many personal values]"}], (
        "a text that was masked in part only reaches no log"
    )
    assert threading.active_count() < 50
    [other] = await governance([_envelope("call 415-555-0132")])
    assert other.messages[0]["content"] == "call [PHONE_1]"


async def test_a_refusal_of_a_text_is_no_fault_of_the_stage() -> None:
    """It must not open the circuit for everybody."""
    stage = Governance(GovernanceConfig(limit_s=0.001))
    [result] = await run(stage, MASK, [MASK.take(_envelope(GROUPS))], [time.time() + 5])
    assert isinstance(result, tuple)


def test_masking_looks_at_the_clock_while_it_works() -> None:
    looks = 0

    def tick() -> None:
        nonlocal looks
        looks += 1
        if looks > 10:
            raise OutOfTime("enough")

    for text in (GROUPS, '{"a": ["x1", "y2"]}' * 100):
        looks = 0
        with pytest.raises(OutOfTime):
            mask_text(text, Vault(tick=tick))
    assert mask("call 415-555-0132", Vault()) == "call [PHONE_1]"


async def test_a_call_of_many_long_texts_is_answered() -> None:
    stage = Governance()
    texts = [_envelope("1234 5678 " * 30) for _ in range(32)]
    done = await asyncio.gather(*(stage([one]) for one in texts))
    assert [one.refusal for [one] in done] == [None] * 32


async def test_an_answer_that_takes_too_long_to_mask_is_withheld() -> None:
    envelope = _envelope("hi")
    envelope.generation = Generation(GROUPS, "m@1", 1, 1, "stop", 0.0, 0.0, 1.0, 1.0, "r")
    [done] = await Governance(GovernanceConfig(limit_s=0.02))([envelope])
    assert done.refusal is None
    assert done.answer == "[withheld: too many personal values]"
    assert done.generation is not None
    assert "١" not in done.generation.text


async def test_tenants_take_turns() -> None:
    texts, done = LongTexts(5.0), list[str]()
    first = threading.Event()

    def work(name: str, _tick: Tick) -> None:
        first.wait(5)
        done.append(name)

    async def ask(tenant: str, name: str) -> None:
        await texts.run(tenant, lambda tick: work(name, tick))

    noisy = [asyncio.ensure_future(ask("noisy", f"n{number}")) for number in range(6)]
    await asyncio.sleep(0.01)
    quiet = asyncio.ensure_future(ask("quiet", "q"))
    await asyncio.sleep(0.01)
    first.set()
    await asyncio.gather(*noisy, quiet)
    assert done.index("q") <= 2, done


async def test_what_waits_is_bounded_by_tenant_and_by_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(long_texts, "_WAITING", 8)
    texts, hold = LongTexts(5.0, patience_s=0.05), threading.Event()

    async def ask(tenant: str) -> None:
        await texts.run(tenant, lambda _tick: hold.wait(5))

    asked = [asyncio.ensure_future(ask("noisy")) for _ in range(12)]
    await asyncio.sleep(0.02)
    assert sum(one.done() for one in asked) >= 3
    quiet = asyncio.ensure_future(ask("quiet"))
    await asyncio.sleep(0.1)
    hold.set()
    results = await asyncio.gather(*asked, quiet, return_exceptions=True)
    assert results[0] is None
    assert all(isinstance(one, Busy) for one in results[1:]), "none of them waited for longer"


async def test_a_client_that_left_costs_nothing_more() -> None:
    texts, hold, worked = LongTexts(5.0), threading.Event(), list[int]()
    first = asyncio.ensure_future(texts.run("a", lambda _tick: hold.wait(5)))
    left = asyncio.ensure_future(texts.run("a", lambda _tick: worked.append(1)))
    await asyncio.sleep(0.02)
    left.cancel()
    hold.set()
    await first
    await texts.run("a", lambda _tick: worked.append(2))
    assert worked == [2]


async def test_a_long_text_holds_up_no_other_in_a_hand_off() -> None:
    free, called = asyncio.Event(), list[list[int]]()

    async def call(_step: object, rows: list[tuple[object, ...]], _until: object) -> list[object]:
        sizes = [len(str(row[1])) for row in rows]
        called.append(sizes)
        if max(sizes) > 8192:
            await free.wait()
        return [(*row[1:], None, []) for row in rows]

    config = StageConfig(linger_ms=0.0)
    others = StageBatcher(DATA_PREP, call, config)
    apart = StageBatcher(DATA_PREP, call, config.model_copy(update={"max_batch": 1}))
    lanes = Lanes(others, apart, lambda envelope: is_long(envelope.texts()))
    long = [asyncio.ensure_future(lanes(_envelope("x" * 9000))) for _ in range(6)]
    await asyncio.sleep(0)
    short = _envelope("hello")
    await asyncio.wait_for(lanes(short), 5)
    assert short.refusal is None
    free.set()
    await asyncio.gather(*long)
    assert sorted(len(sizes) for sizes in called) == [1] * 7


async def test_marks_in_a_row_are_normalised_in_the_time_of_their_length() -> None:
    text = "a" + "\u0301" * 26000 + "\u0327" * 26000
    [done] = await DataPrep()([_envelope(text)])
    assert len(done.messages[0]["content"]) < 100


async def test_a_text_that_fits_no_window_is_refused_before_any_work() -> None:
    world = World(most_characters=5000)
    transport = httpx.ASGITransport(app=world.app)
    key = {"Authorization": "Bearer hr-user"}
    async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=key) as client:
        long = [{"role": "user", "content": "x" * 5001}]
        for path, body in (
            ("chat/completions", {**GOOD, "messages": long}),
            ("completions", {"model": "inventory", "prompt": "x" * 5001}),
        ):
            answer = await client.post(f"/v1/{path}", json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert (await client.post("/v1/chat/completions", json=GOOD)).status_code == 200
    assert len(world.engine.requests) == 1, "nothing else set out"


def test_the_longest_token_bounds_a_prompt(tmp_path: Path) -> None:
    assert most_characters(tmp_path, 512) is None
    (tmp_path / "tokenizer.json").write_text(
        '{"model": {"vocab": {"a": 0, "abcdefghij": 1}}, "added_tokens": [{"content": "<|x|>"}]}'
    )
    assert most_characters(tmp_path, 512) == 5120
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": [["ab", -1.0]]}}')
    assert most_characters(tmp_path, 4) == 4096
