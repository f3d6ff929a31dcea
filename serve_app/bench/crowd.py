"""`python -m serve_app.bench.crowd`: one engine and many adapters, in a process of its own.

Prints one JSON document. The engine is ours (`VLLMEngine` behind `Loader`), without the graph in
front of it, whose own cost would hide what adapters cost. Every answer is compared with what the
adapter answers offline.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import random
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.adapters import inspect
from cluster.config import BaseModelRef
from cluster.processes import descendants, resident_bytes
from cluster.records.adapter import ServedAdapter
from cluster.records.model import Target
from cluster.storage import read_json, require_stable
from serve_app.config import EngineConfig
from serve_app.generation.targets import Targets
from serve_app.protocol import AdapterGone, GenerationRequest, Sampling

if TYPE_CHECKING:
    from serve_app.engine.loader import Loader
    from serve_app.engine.vllm import VLLMEngine

_Adapter = TypeVar("_Adapter")

#: Of Zipf's law.
_EXPONENT = 1.1
_MAX_RANK = 8
_IN_FLIGHT = 32
_MAX_TOKENS = 16
#: Requests of a measurement that asks a fixed number: the same ones, whatever their order.
_REQUESTS = 512
_LONGEST_S = 120.0


@dataclass
class Row:
    """One measurement; a token is one of an answer."""

    name: str
    adapters: int
    used: int
    """Adapters that were asked for at least once."""
    seconds: float
    requests: int
    tokens_per_s: float
    right: int
    wrong: int
    """Answers that another adapter gives offline, and the one asked for does not."""
    failed: int
    memory_mib: float


class Registered:
    """Stands for the control plane: everything given is live, in that order."""

    def __init__(self, adapters: list[ServedAdapter]) -> None:
        self._by_id = {adapter.int_id: adapter for adapter in adapters}

    async def desired(self) -> list[ServedAdapter]:
        """All of them."""
        return list(self._by_id.values())

    async def desired_version(self, int_id: int) -> ServedAdapter | None:
        """The one with `int_id`."""
        return self._by_id.get(int_id)


def main(arguments: list[str] | None = None) -> int:
    """Measure `--adapters` of those below `--made`, or a plain model, in one engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--made", type=Path, required=True, help="what bench.versions wrote")
    parser.add_argument("--plain", metavar="NAME", help="an engine without LoRA; the row's name")
    parser.add_argument("--one", metavar="LABEL", help="of a plain engine: who the model is")
    parser.add_argument("--zipf", type=int, action="append", default=[], metavar="N")
    parser.add_argument("--mixed", type=int, action="append", default=[], metavar="N")
    parser.add_argument(
        "--apart", type=int, action="append", default=[], metavar="N", help="adapter by adapter"
    )
    parser.add_argument("--base", action="store_true", help="also the base model alone")
    parser.add_argument("--peft", type=int, metavar="N", help="N by PEFT's set_adapter instead")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--warm", type=float, default=2.0)
    parser.add_argument("--slots", type=int, default=EngineConfig().max_loras)
    parser.add_argument("--held", type=int, help="room in memory, fewer than asked for; in names")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    rows = [_by_peft(options)] if options.peft else asyncio.run(_measure(options))
    json.dump([asdict(row) for row in rows], sys.stdout)
    return 0


async def _measure(options: argparse.Namespace) -> list[Row]:
    from serve_app.engine.vllm import VLLMEngine

    offline: Any = read_json(options.made / "offline.json")
    counts = {*options.zipf, *options.mixed, *options.apart}
    # Once: to read and check a thousand takes longer than a round.
    adapters = {count: _adapters(options.made, offline, count) for count in counts}
    most = min(max([1, *counts]), options.held or max([1, *counts]))
    config = EngineConfig(
        max_loras=options.slots,
        max_cpu_loras=max(most, options.slots),
        max_lora_rank=_MAX_RANK,
        loras=not options.plain,
    )
    model = BaseModelRef(path=str(options.model), dtype="float32")
    engine = VLLMEngine(model, config, "bench")
    bench = _Bench(engine, offline, options)
    try:
        rows = []
        for _ in range(options.rounds):
            if options.plain:
                rows.append(await bench.run(options.plain, [None], "cycle", one=options.one))
                continue
            if options.base:
                rows.append(await bench.run("base alone", [None], "cycle"))
            for name, order, asked in (
                ("mixed", "mixed", options.mixed),
                ("apart", "apart", options.apart),
                ("by Zipf", "zipf", options.zipf),
            ):
                called = f"{name}, {options.held} held" if options.held else name
                rows += [
                    await bench.run(f"{count} {called}", adapters[count], order) for count in asked
                ]
        return rows
    finally:
        await engine.close()


def _by_peft(options: argparse.Namespace) -> Row:
    """The same requests in the same order, one after another, by `set_adapter` and `generate`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    offline: Any = read_json(options.made / "offline.json")
    adapters = _adapters(options.made, offline, options.peft)
    labels = [adapter.label for adapter in adapters if adapter is not None]
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    for number, adapter in enumerate(adapters):
        assert adapter is not None
        name = f"n{number}"
        if number == 0:
            model = PeftModel.from_pretrained(model, adapter.path, adapter_name=name)
        else:
            model.load_adapter(adapter.path, adapter_name=name)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in offline["prompts"]]
    row = Row(f"{options.peft} by PEFT", len(labels), len(labels), 0.0, 0, 0.0, 0, 0, 0, 0.0)
    model.eval()
    tokens, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < options.seconds:
        turn, which = divmod(row.requests, len(labels))
        prompt = turn % len(ids)
        model.set_adapter(f"n{which}")
        with torch.inference_mode():
            found = model.generate(ids[prompt], max_new_tokens=_MAX_TOKENS, do_sample=False)
        written = found[0, ids[prompt].shape[1] :].tolist()
        text = tokenizer.decode(written, skip_special_tokens=True)
        row.requests, tokens = row.requests + 1, tokens + len(written)
        row.right += text == offline["answers"][labels[which]][prompt]
    row.seconds = now - began
    row.tokens_per_s = tokens / row.seconds
    row.memory_mib = resident_bytes(os.getpid()) / 2**20
    return row


def _adapters(made: Path, offline: Any, count: int) -> list[ServedAdapter | None]:
    labels = sorted(offline["answers"], key=lambda label: int(label.rpartition("@")[2]))[:count]
    found: list[ServedAdapter | None] = []
    for int_id, label in enumerate(labels, 1):
        name, _, version = label.partition("@")
        path = made / name / version
        golden = inspect(path, max_rank=_MAX_RANK).golden
        served = ServedAdapter(name, int(version), int_id, str(path), require_stable(path), golden)
        found.append(served)
    assert len(found) == count, f"only {len(found)} adapters were made"
    return found


def draws(adapters: Sequence[_Adapter], prompts: int, order: str) -> Iterator[tuple[_Adapter, int]]:
    """Who is asked which of the prompts; without end in the orders `cycle` and `zipf`."""
    each = itertools.cycle([(one, prompt) for prompt in range(prompts) for one in adapters])
    if order == "cycle":
        return each
    if order == "zipf":
        shares = (1 / rank**_EXPONENT for rank in range(1, len(adapters) + 1))
        # Summed once: the client shares this process with the engine's front end.
        sums = list(itertools.accumulate(shares))
        chance = random.Random(0)

        def draw() -> tuple[_Adapter, int]:
            return chance.choices(adapters, cum_weights=sums)[0], chance.randrange(prompts)

        return iter(draw, None)
    mixed = list(itertools.islice(each, _REQUESTS))
    if order == "mixed":
        return iter(mixed)
    assert order == "apart", order
    return iter(sorted(mixed, key=lambda pair: adapters.index(pair[0])))


@dataclass
class _Load:
    """Who is asked what, and what came of it. `one` is who a plain engine's model is."""

    drawn: Iterator[tuple[ServedAdapter | None, int]]
    seconds: float
    """After which no more is asked; those drawn may end before."""
    loader: Loader
    row: Row
    one: str | None
    used: set[str] = field(default_factory=set)
    tokens: int = 0


class _Bench:
    def __init__(self, engine: VLLMEngine, offline: Any, options: argparse.Namespace) -> None:
        self._engine, self._options = engine, options
        self._prompts: list[str] = offline["prompts"]
        self._answers: dict[str, list[str]] = offline["answers"]

    async def run(
        self,
        name: str,
        adapters: list[ServedAdapter | None],
        order: str,
        *,
        one: str | None = None,
    ) -> Row:
        """Warm up, then keep requests in flight.

        In the orders `mixed` and `apart` the same requests are asked, each adapter every prompt as
        often, in turn or one adapter after another; in `cycle` and `zipf`, for the time given.
        """
        from serve_app.engine.loader import Loader

        count = min(len(adapters), self._options.held or len(adapters))
        held = [adapter for adapter in adapters if adapter is not None]
        loader = Loader(self._engine, Registered(held), "bench", capacity=max(8, count), eager=8)
        await loader.reconcile()
        row = Row(name, len(held), 0, 0.0, 0, 0.0, 0, 0, 0, 0.0)
        if order == "zipf":  # each once, so that what is measured is not their first loading
            for adapter in held[:count]:
                await loader.hold(adapter)
        prompts, seconds = len(self._prompts), self._options.seconds
        drawn = draws(adapters, prompts, "zipf" if order == "zipf" else "cycle")
        await self._load(_Load(drawn, self._options.warm, loader, Row(**asdict(row)), one))
        if order in {"mixed", "apart"}:
            drawn, seconds = draws(adapters, prompts, order), _LONGEST_S
        load = _Load(drawn, seconds, loader, row, one)
        began = time.perf_counter()
        await self._load(load)
        row.seconds = time.perf_counter() - began
        row.tokens_per_s = load.tokens / row.seconds
        row.used = len(load.used)
        row.memory_mib = sum(map(resident_bytes, descendants([os.getpid()]))) / 2**20
        return row

    async def _load(self, load: _Load) -> None:
        deadline = time.perf_counter() + load.seconds

        async def client() -> None:
            for adapter, prompt in load.drawn:
                label = adapter.label if adapter else load.one
                try:
                    found = await self._ask(load.loader, adapter, prompt)
                except AdapterGone:
                    load.row.failed += 1
                else:
                    load.row.requests += 1
                    load.tokens += found.completion_tokens
                    if label is not None:
                        load.used.add(label)
                        self._judge(load.row, label, prompt, found.text)
                if time.perf_counter() >= deadline:
                    return

        await asyncio.gather(*(client() for _ in range(_IN_FLIGHT)))

    async def _ask(self, loader: Loader, adapter: ServedAdapter | None, prompt: int) -> Any:
        if adapter is not None:
            await loader.hold(adapter)
        return await self._engine.complete(
            GenerationRequest(
                uuid.uuid4().hex,
                ({"role": "user", "content": self._prompts[prompt]},),
                Sampling(max_tokens=_MAX_TOKENS),
                Target("base", "vllm") if adapter is None else Targets.of(adapter),
                chat=False,
            )
        )

    def _judge(self, row: Row, label: str, prompt: int, text: str) -> None:
        if text == self._answers[label][prompt]:
            row.right += 1
        elif any(text == answers[prompt] for answers in self._answers.values()):
            row.wrong += 1


if __name__ == "__main__":
    sys.exit(main())
