"""`scripts/bench adapters`: hundreds of verified swaps under load, each answer checked offline.

One adapter is swapped again and again while clients send requests for it and for others that stay.
Blocks of swaps alternate with blocks without (rest), so that drift of the machine cancels out of
their comparison. Swaps start at a fixed rate (open loop): back to back, a faster swap would be
repeated more often and would seem to cost the others more. The last block is back to back and is
reported separately. Then the adapter is killed and revived a few times under load.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import aiohttp

from cluster.errors import HeadraceError
from cluster.progress import ProgressReporter
from cluster.quantiles import percentile
from cluster.types import AdapterVersion
from serve_app.bench import intervals, systems, versions
from serve_app.bench.systems import System
from serve_app.bench.versions import DTYPE

HOT = "hot"
_OTHERS = ("steady-a", "steady-b", "steady-c")
_MAKE_S = 1800.0
_TIMEOUT_S = 60.0
_AFTER_ERROR_S = 0.02
_BASE = systems.REPOSITORY / "cluster/models/headrace-mini"


@dataclass(frozen=True)
class Plan:
    """How many swaps, and the load meanwhile."""

    swaps: int = 200
    blocks: int = 16
    """Blocks of swaps; before, between and after them are blocks of rest of the same length."""
    every_s: float = 1.0
    """Seconds from the start of one swap to that of the next, at least."""
    back_to_back: int = 40
    """Swaps at the end that are done back to back, at least."""
    clients: int = 4
    """Clients of the other adapters, and as many of the adapter that is swapped."""
    kills: int = 10
    """Times that the adapter is killed and revived."""
    watchers: int = 2
    """Clients that request one token of the swapped adapter, again and again."""
    max_tokens: int = 16
    replicas: int = 1
    """Engine replicas; every version is verified on each."""
    config: Path = systems.REPOSITORY / "configs/serve/bench.yaml"

    @classmethod
    def of(cls, swaps: int, *, every_s: float, clients: int, replicas: int = 1) -> Plan:
        """A fifth of the swaps back to back; each block of the others has one at least."""
        back_to_back = swaps // 5
        blocks = min(cls.blocks, swaps - back_to_back)
        return cls(
            swaps,
            blocks=blocks,
            every_s=every_s,
            back_to_back=back_to_back,
            clients=clients,
            replicas=replicas,
        )


@dataclass
class Answer:
    """One request. Times in seconds of this process's clock."""

    asked: str
    sent: float
    first: float
    done: float
    version: str
    text: str
    prompt: int
    max_tokens: int = 16
    error: str = ""


@dataclass
class Swap:
    """One promotion: when it was asked for, when it returned, what it reported."""

    version: str
    asked: float
    returned: float
    report: dict[str, Any] = field(default_factory=dict)


@dataclass
class Kill:
    """One kill: when it was requested and returned, its report, and when it was revived."""

    asked: float
    returned: float
    aborted: int
    confirmed: bool
    revived: float = 0.0


@dataclass
class Spans:
    """Periods with and without swaps, as (start, end); warm-up belongs to none."""

    swap: list[tuple[float, float]] = field(default_factory=list)
    rest: list[tuple[float, float]] = field(default_factory=list)
    back_to_back: list[tuple[float, float]] = field(default_factory=list)


def run(folder: Path, plan: Plan, progress: ProgressReporter) -> dict[str, Any]:
    """Make the versions, deploy, swap under load, and check every answer."""
    folder.mkdir(parents=True, exist_ok=True)
    progress.step(f"Make {plan.swaps + 1} versions of one adapter, and {len(_OTHERS)} others")
    made = _versions(folder, plan)
    offline = json.loads((made / "offline.json").read_text())
    progress.step("Start a Ray cluster and deploy the graph on the real engine")
    settings = (
        f"base_model.dtype={DTYPE}",
        f"engine.autoscaling.min_replicas={plan.replicas}",
        f"engine.autoscaling.max_replicas={plan.replicas}",
    )
    with systems.ours(folder, plan.config, "fused", "vllm", settings) as system:
        _register(made, plan)
        clients = 2 * plan.clients + plan.watchers
        progress.step(f"{plan.swaps} swaps in {plan.blocks} blocks and a last, {clients} clients")
        answers, swaps, spans = asyncio.run(_under_load(system, plan, offline["prompts"], progress))
        progress.step(f"Switch it off and on again, {plan.kills} times, {plan.clients} clients")
        asked, kills = asyncio.run(_switched(system, plan, offline["prompts"]))
    return {
        "plan": {**asdict(plan), "config": plan.config.name},
        **judged(answers, swaps, spans, offline["answers"]),
        "kill": judged_kills(asked, kills),
        "swap_rows": [asdict(swap) for swap in swaps],
    }


def _versions(folder: Path, plan: Plan) -> Path:
    """Published versions of every adapter; made once in a benchmark's folder."""
    names = [f"{HOT}:{plan.swaps + 1}", *(f"{name}:1" for name in _OTHERS)]
    return versions.made(_BASE, folder, names, _MAKE_S)


def _register(made: Path, plan: Plan) -> None:
    from cluster.base_models import describe
    from cluster.control.client import ControlClient

    control = ControlClient("benchmark")
    control.do(control.serving.serve_base(describe(_BASE), control.name))
    for name in (*_OTHERS, HOT):
        for version in range(1, plan.swaps + 2 if name == HOT else 2):
            control.do(
                control.adapters.register(
                    str(made / name / str(version)), systems.TENANT, control.name
                )
            )
        _gate(AdapterVersion(name, 1))
        _promote(AdapterVersion(name, 1))


def _gate(version: AdapterVersion) -> None:
    from cluster.control.client import ControlClient

    control = ControlClient("benchmark")
    if not control.do(control.evaluations.judge(version, control.name)).passed:
        raise HeadraceError(f"the gate refused {version}")


def _promote(version: AdapterVersion) -> dict[str, Any]:
    from cluster.control.client import ControlClient

    control = ControlClient("benchmark")
    return asdict(control.do(control.serving.promote(version, control.name)))


async def _under_load(
    system: System, plan: Plan, prompts: list[str], progress: ProgressReporter
) -> tuple[list[Answer], list[Swap], Spans]:
    answers, swaps, spans = list[Answer](), list[Swap](), Spans()
    async with _client(system, prompts) as client:
        asked = [
            (name, plan.max_tokens)
            for number in range(plan.clients)
            for name in (_OTHERS[number % len(_OTHERS)], HOT)
        ]
        asked += [(HOT, 1)] * plan.watchers
        asking = [
            asyncio.create_task(client.ask(name, number, answers, tokens))
            for number, (name, tokens) in enumerate(asked)
        ]
        await asyncio.sleep(3.0)
        following = (AdapterVersion(HOT, number) for number in itertools.count(2))
        paced = plan.swaps - plan.back_to_back
        each = paced // plan.blocks
        for block in range(plan.blocks):
            spans.rest.append(await _rest(each * plan.every_s))
            spans.swap.append(await _block(islice(following, each), swaps, plan.every_s))
            took = spans.swap[-1][1] - spans.swap[-1][0]
            progress.say(f"block {block + 1}: {each} swaps in {took:.1f} s")
        spans.rest.append(await _rest(each * plan.every_s))
        rest = plan.swaps - len(swaps)
        spans.back_to_back.append(await _block(islice(following, rest), swaps, 0.0))
        took = spans.back_to_back[0][1] - spans.back_to_back[0][0]
        progress.say(f"{rest} swaps, one after another, in {took:.1f} s")
        await asyncio.sleep(1.0)
        client.stopped = True
        await asyncio.gather(*asking)
    return answers, swaps, spans


async def _block(
    following: Iterable[AdapterVersion], swaps: list[Swap], every_s: float
) -> tuple[float, float]:
    """Swap these in, one every `every_s` seconds; returns the block's start and end."""
    began = time.monotonic()
    for number, version in enumerate(following):
        await asyncio.sleep(began + number * every_s - time.monotonic())
        swaps.append(await _swap(version))
    return began, time.monotonic()


async def _switched(
    system: System, plan: Plan, prompts: list[str]
) -> tuple[list[Answer], list[Kill]]:
    from cluster.control.client import ControlClient

    control = ControlClient("benchmark")
    answers, kills = list[Answer](), list[Kill]()
    async with _client(system, prompts) as client:
        asking = [
            asyncio.create_task(client.ask(HOT, number, answers, plan.max_tokens))
            for number in range(plan.clients)
        ]
        for _ in range(plan.kills):
            await asyncio.sleep(plan.every_s)
            asked = time.monotonic()
            report = await control.serving.kill(HOT, "the benchmark", control.name)
            kills.append(Kill(asked, time.monotonic(), report.aborted, report.confirmed))
            await asyncio.sleep(plan.every_s)
            kills[-1].revived = time.monotonic()
            await control.serving.revive(HOT, control.name)
        client.stopped = True
        await asyncio.gather(*asking)
    return answers, kills


@asynccontextmanager
async def _client(system: System, prompts: list[str]) -> AsyncIterator[_Client]:
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {system.key}"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        yield _Client(session, system.url.replace("/chat/", "/"), prompts)


async def _rest(seconds: float) -> tuple[float, float]:
    began = time.monotonic()
    await asyncio.sleep(seconds)
    return began, time.monotonic()


async def _swap(version: AdapterVersion) -> Swap:
    await asyncio.to_thread(_gate, version)
    asked = time.monotonic()
    report = await asyncio.to_thread(_promote, version)
    return Swap(str(version), asked, time.monotonic(), report)


class _Client:
    """A closed-loop client: streams one answer after another until it is stopped."""

    def __init__(self, session: aiohttp.ClientSession, url: str, prompts: list[str]) -> None:
        self._session, self._url, self._prompts = session, url, prompts
        self.stopped = False

    async def ask(self, model: str, number: int, answers: list[Answer], max_tokens: int) -> None:
        while not self.stopped:
            number += 1
            answers.append(await self._one(model, number % len(self._prompts), max_tokens))
            if answers[-1].error:
                await asyncio.sleep(_AFTER_ERROR_S)

    async def _one(self, model: str, prompt: int, max_tokens: int) -> Answer:
        body = {
            "model": model,
            "prompt": self._prompts[prompt],
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
        }
        answer = Answer(model, time.monotonic(), 0.0, 0.0, "", "", prompt, max_tokens)
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    answer.error = f"{response.status}: {(await response.text())[:200]}"
                else:
                    await self._read(response, answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.done = time.monotonic()
        return answer

    @staticmethod
    async def _read(response: aiohttp.ClientResponse, answer: Answer) -> None:
        ended = False
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                ended = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                answer.error = str(event["error"])[:200]
                return
            for choice in event["choices"]:
                answer.text += choice["text"]
                if choice["text"] and not answer.first:
                    answer.first = time.monotonic()
                if choice["finish_reason"]:
                    answer.version = event["model"]
        if not ended or not answer.version:
            answer.error = "the stream broke off"


def judged(
    answers: list[Answer],
    swaps: list[Swap],
    spans: Spans,
    offline: dict[str, list[str]],
) -> dict[str, Any]:
    """The figures. An answer is right where it equals the offline answer of the version it names,
    masked as governance masks: random weights sometimes write what looks like a telephone number.

    `wrong` are answers that equal another version's offline answer instead. `unlike` are answers
    that equal none: between two tokens of equal probability rounding decides, and the engine's
    batches round differently from PEFT's. Latencies are of answers within one block of swaps or of
    rest, kept by block; times of swaps are of all swaps.
    """
    failed = [a for a in answers if a.error]
    whole = [a for a in answers if not a.error]
    right = wrong = 0
    for answer in whole:
        if _agrees(answer, offline[answer.version]):
            right += 1
        elif any(_agrees(answer, offline[version]) for version in _others(answer.version, offline)):
            wrong += 1
    others = [a for a in whole if a.asked != HOT]
    blocks = {
        name: [[a.done - a.sent for a in others if _within(a, span)] for span in found]
        for name, found in asdict(spans).items()
    }
    names = ("swap", "rest", "back_to_back")
    during, resting, back_to_back = (list(chain(*blocks[n])) for n in names)
    first = [moment for swap in swaps if (moment := _first_token(swap, whole)) is not None]
    return {
        "swaps": len(swaps),
        "confirmed": sum(swap.report["removed"] for swap in swaps),
        "replicas": min(swap.report["replicas"] for swap in swaps),
        "answers": len(answers),
        "failed": len(failed),
        "errors": sorted({a.error for a in failed})[:10],
        "right": right,
        "wrong": wrong,
        "unlike": len(whole) - right - wrong,
        "promote_to_first_token_ms": _spread(first),
        "prepare_ms": _spread([swap.report["prepare_s"] for swap in swaps]),
        "flip_ms": _spread([swap.report["flip_s"] for swap in swaps]),
        "drain_ms": _spread([swap.report["drain_s"] for swap in swaps]),
        "others_ms_while_swapping": _spread(during),
        "others_ms_at_rest": _spread(resting),
        "others_ms_back_to_back": _spread(back_to_back),
        "others_p99_ratio": round(percentile(during, 0.99) / percentile(resting, 0.99), 3),
        "others_p99_ratio_95": _interval(blocks["swap"], blocks["rest"]),
        "others_p99_ratio_back_to_back": round(
            percentile(back_to_back, 0.99) / percentile(resting, 0.99), 3
        ),
        "worst_proof": max(swap.report["proof_difference"] for swap in swaps),
        "others_rows_ms": {
            name: [[round(seconds * 1000, 2) for seconds in block] for block in found]
            for name, found in blocks.items()
        },
    }


def judged_kills(answers: list[Answer], kills: list[Kill]) -> dict[str, Any]:
    """How fast a kill takes effect, and how many requests sent after it returned were answered.

    `last_answer_ms` is from the kill's request to the end of the last whole answer before the
    adapter was revived; 0 where there was none.
    """
    whole = [a for a in answers if not a.error]
    ended = [[a for a in whole if kill.asked < a.done <= kill.revived] for kill in kills]
    last = [
        max((a.done - kill.asked for a in found), default=0.0)
        for kill, found in zip(kills, ended, strict=True)
    ]
    after = sum(
        a.sent > kill.returned for kill, found in zip(kills, ended, strict=True) for a in found
    )
    return {
        "kills": len(kills),
        "confirmed": sum(kill.confirmed for kill in kills),
        "cut_off": sum(kill.aborted for kill in kills),
        "kill_ms": _spread([kill.returned - kill.asked for kill in kills]),
        "last_answer_ms": _spread(last),
        "answered_after": after,
    }


def _agrees(answer: Answer, offline: list[str]) -> bool:
    whole = offline[answer.prompt]
    if answer.max_tokens == 1:
        return whole.startswith(answer.text)
    return whole == answer.text


def _others(label: str, offline: dict[str, list[str]]) -> list[str]:
    """The other versions of the adapter that `label` is of."""
    name = AdapterVersion.parse(label).name
    return [one for one in offline if one != label and AdapterVersion.parse(one).name == name]


def _first_token(swap: Swap, answers: list[Answer]) -> float | None:
    """Seconds from asking for the promotion to the first token of the new version."""
    found = [a.first for a in answers if a.version == swap.version and a.first]
    return min(found) - swap.asked if found else None


def _within(answer: Answer, span: tuple[float, float]) -> bool:
    start, end = span
    return start <= answer.sent and answer.done <= end


def _interval(swapping: list[list[float]], resting: list[list[float]]) -> list[float]:
    """95 % bootstrap interval of the ratio of the p99s, over blocks.

    A block of swaps is paired with the rest before it; the last one also with the rest after it.
    """
    before = [*resting[: len(swapping) - 1], list(chain(*resting[len(swapping) - 1 :]))]
    return [round(end, 3) for end in intervals.p99_ratio(list(zip(swapping, before, strict=True)))]


def _spread(seconds: list[float]) -> dict[str, float]:
    return {
        "n": len(seconds),
        "p50": round(percentile(seconds, 0.5) * 1000, 2),
        "p99": round(percentile(seconds, 0.99) * 1000, 2),
    }
