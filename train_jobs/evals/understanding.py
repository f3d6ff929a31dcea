"""Held-out evaluation of the understanding task, and the golden probes that prove a swap."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.adapters import WEIGHTS
from cluster.answer import Understanding, parse
from cluster.config import BaseModelRef
from cluster.processor import precision
from cluster.records.adapter import GoldenProbe
from cluster.records.evaluation import EvaluationReport, Metric, SuiteResult
from cluster.storage import file_digest, write_atomic
from cluster.workload import TurnRecord
from train_jobs.batches import chat_ids
from train_jobs.config import EvalConfig
from train_jobs.lora import with_adapter

#: The name of this suite in reports and gate rules.
SUITE = "understanding"


@dataclass(frozen=True)
class Score:
    """One model on the held-out rows."""

    correct: list[bool]
    """Per row: is the intent right?"""
    slot_f1: float
    """Micro-averaged F1 over (slot, value) pairs."""

    @property
    def accuracy(self) -> float:
        """Share of rows with the right intent."""
        return sum(self.correct) / len(self.correct)


def _prompt(turn: TurnRecord) -> list[dict[str, str]]:
    return [{"role": "user", "content": turn.text}]


def generate(model: Any, tokenizer: Any, turns: list[TurnRecord], config: EvalConfig) -> list[str]:
    """Greedy answers in the order of `turns`."""
    tokenizer.padding_side = "left"
    order = sorted(range(len(turns)), key=lambda i: len(turns[i].text))
    answers = [""] * len(turns)
    for start in range(0, len(order), config.batch_size):
        chosen = order[start : start + config.batch_size]
        ids = [chat_ids(tokenizer, _prompt(turns[i])) for i in chosen]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            output = model.generate(
                **batch,
                max_new_tokens=config.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = output[:, batch["input_ids"].shape[1] :]
        for i, text in zip(
            chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            answers[i] = text.strip()
    return answers


def score(answers: list[str], turns: list[TurnRecord]) -> Score:
    """Intent accuracy and slot F1; an answer that does not parse is wrong."""
    correct, hits, found, wanted = [], 0, 0, 0
    for text, turn in zip(answers, turns, strict=True):
        answer = parse(text) or Understanding("")
        correct.append(answer.intent == turn.intent)
        guess, truth = _pairs(answer.slots), _pairs(turn.slots)
        hits += (guess & truth).total()
        found, wanted = found + guess.total(), wanted + truth.total()
    return Score(correct, 2 * hits / (found + wanted) if found + wanted else 1.0)


def _pairs(slots: dict[str, list[str]]) -> Counter[tuple[str, str]]:
    return Counter((name, value) for name, values in slots.items() for value in values)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates adapters of one base model on one held-out set.

    Scores are kept by content under `cache`: the base model and the live version were scored when
    they were candidates, and the same weights on the same rows score the same.
    """

    base: BaseModelRef
    base_digest: str
    tokenizer: Any
    turns: list[TurnRecord]
    config: EvalConfig
    cache: Path

    def run(self, adapter: Path | None) -> Score:
        """Score `adapter`, or the base model alone."""
        path = self.cache / f"{self._key(adapter)}.json"
        if path.is_file():
            return Score(**json.loads(path.read_text(encoding="utf-8")))
        found = self._score(adapter)
        write_atomic(path, json.dumps(asdict(found)))
        return found

    def _key(self, adapter: Path | None) -> str:
        digest = hashlib.sha256(self.base_digest.encode())
        digest.update(file_digest(adapter / WEIGHTS).encode() if adapter else b"base")
        digest.update(self.config.model_dump_json().encode())
        for turn in self.turns:
            digest.update(turn.model_dump_json().encode())
        return digest.hexdigest()

    def _score(self, adapter: Path | None) -> Score:
        model = with_adapter(self.base, adapter, torch.float32)
        if adapter is not None:
            model = model.merge_and_unload()
        return score(generate(model, self.tokenizer, self.turns, self.config), self.turns)

    def evaluate(
        self, candidate: Path, previous: Path | None, label: str | None, trained: set[str]
    ) -> EvaluationReport:
        """The candidate, the base and the live version on the same rows.

        `trained` holds the texts of the training rows; rows outside it are also scored apart.
        """
        mine, base = self.run(candidate), self.run(None)
        theirs = self.run(previous) if previous else None
        unseen = [
            ok for ok, t in zip(mine.correct, self.turns, strict=True) if t.text not in trained
        ]
        rows = len(self.turns)
        accuracy = Metric(value=mine.accuracy, rows=rows, base=base.accuracy)
        slot_f1 = Metric(value=mine.slot_f1, rows=rows, base=base.slot_f1)
        if theirs is not None:
            pairs = list(zip(mine.correct, theirs.correct, strict=True))
            paired = {
                "previous": theirs.accuracy,
                "wins": sum(ours and not other for ours, other in pairs),
                "losses": sum(other and not ours for ours, other in pairs),
            }
            accuracy = accuracy.model_copy(update=paired)
            slot_f1 = slot_f1.model_copy(update={"previous": theirs.slot_f1})
        metrics = {
            "accuracy": accuracy,
            "slot_f1": slot_f1,
            "unseen_accuracy": Metric(
                value=sum(unseen) / len(unseen) if unseen else 0.0, rows=len(unseen)
            ),
        }
        suite = SuiteResult(metrics=metrics, outcomes=self._keep(mine.correct))
        return EvaluationReport(
            suites={SUITE: suite},
            primary=f"{SUITE}/accuracy",
            previous=label if theirs is not None else None,
        )

    def _keep(self, outcomes: list[bool]) -> str:
        """Keep outcomes by row under their own digest, beside the scores."""
        document = json.dumps(outcomes)
        digest = hashlib.sha256(document.encode()).hexdigest()
        write_atomic(self.cache / f"outcomes-{digest}.json", document)
        return digest

    def probes(self, adapter: Path) -> tuple[GoldenProbe, ...]:
        """Prompts, the adapter's own greedy answers and the log-probabilities of the tokens of
        both, in serving precision."""
        # The evaluation is on a CPU wherever the training was.
        dtype = getattr(torch, precision(self.base.dtype, gpu=False))
        model = with_adapter(self.base, adapter, dtype)
        step = max(1, len(self.turns) // self.config.golden_probes)
        chosen = self.turns[::step][: self.config.golden_probes]
        return tuple(self._probe(model, turn) for turn in chosen)

    def _probe(self, model: Any, turn: TurnRecord) -> GoldenProbe:
        prompt = chat_ids(self.tokenizer, _prompt(turn))
        with torch.inference_mode():
            full = model.generate(
                input_ids=torch.tensor([prompt]),
                max_new_tokens=self.config.max_new_tokens,
                do_sample=False,
                # Some models' own settings have one: the engine is asked for the likeliest token.
                repetition_penalty=1.0,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            logits = model(input_ids=full).logits[0].float().log_softmax(-1)
        tokens = full[0].tolist()
        said = tuple(float(logits[place, token]) for place, token in enumerate(tokens[1:]))
        asked = len(prompt) - 1
        return GoldenProbe(
            prompt_token_ids=tuple(prompt),
            target_token_ids=tuple(tokens[len(prompt) :]),
            logprobs=said[asked:],
            prompt_logprobs=said[:asked],
        )
