"""`python -m serve_app.bench.versions`: adapters to swap, and what each answers offline.

Makes published adapter versions of random weights, with the proofs a trainer would give, and notes
the greedy answer of each to each prompt, by PEFT, without an engine. Random weights are as good as
fitted ones here: what is measured is whether the right ones answer, and when.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.records.adapter import AdapterManifest, GoldenProbe
from cluster.records.evaluation import EvaluationReport, Metric, SuiteResult

RANK = 8
MAX_TOKENS = 16
_PROMPT_TOKENS = 8
#: Two libraries, and any batch, round alike in it, so that answers can be compared.
DTYPE = "float32"
_PROBES = 4
#: What a version holds beside its weights; another one makes them anew.
_FORM = 2
#: Of the weights: enough for versions to answer differently.
_SPREAD = 0.07
TEXTS = (
    "hello i would like to know where my order is",
    "can you tell me when the store opens on sunday",
    "i want to return the shoes that i bought",
    "please change the address of my account to",
)


def main(arguments: list[str] | None = None) -> int:
    """Publish `NAME:COUNT` versions below `--out`, and `offline.json` beside them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="+", metavar="NAME:COUNT")
    options = parser.parse_args(arguments)
    maker = Maker(options.base)
    answers: dict[str, list[str]] = {}
    for number, pair in enumerate(options.names):
        name, _, count = pair.partition(":")
        for version in range(1, int(count) + 1):
            seed = number * 100_000 + version
            label = f"{name}@{version}"
            answers[label] = maker.publish(name, version, seed, options.out)
    found = {"prompts": maker.prompts, "answers": answers}
    storage.write_atomic(options.out / "offline.json", json.dumps(found))
    return 0


def made(base: Path, folder: Path, names: Sequence[str], limit_s: float) -> Path:
    """The folder of these versions of `base`, made once in a benchmark's folder."""
    wanted = f"{storage.tree_digest(base)} {DTYPE} {_FORM} {' '.join(names)}"
    out = folder / f"versions-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    if not (out / "offline.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "serve_app.bench.versions", "--base", str(base)]
        subprocess.run(  # noqa: S603 - our own command line, no shell
            [*command, "--out", str(out), *names], check=True, timeout=limit_s, capture_output=True
        )
    return out


class Maker:
    """One base model and the adapter on it, whose weights are drawn anew for each version."""

    def __init__(self, base: Path) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._base = base
        self._digest = storage.tree_digest(base)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, DTYPE))
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear")
        self._model: Any = get_peft_model(model, config).eval()
        # Of one length, so that a batch needs no padding.
        ids = [self._tokenizer(text)["input_ids"][:_PROMPT_TOKENS] for text in TEXTS]
        self.prompts = [str(self._tokenizer.decode(one)) for one in ids]
        for one, text in zip(ids, self.prompts, strict=True):
            assert self._tokenizer(text)["input_ids"] == one, f"{text!r} reads otherwise"
        self._ids = torch.tensor(ids)

    def publish(self, name: str, version: int, seed: int, out: Path) -> list[str]:
        """Publish one version; its greedy answer to each prompt."""
        torch = self._torch
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, value in self._model.named_parameters():
                if "lora_" in key:
                    value.copy_(torch.randn(value.shape, generator=generator) * _SPREAD)
        texts, probes = self._answers()
        if len(probes) < 2:  # too many answers that end at once: other weights then
            return self.publish(name, version, seed + 10_000, out)
        final = out / name / str(version)
        manifest = AdapterManifest(
            name=name,
            version=version,
            base_model=self._base.name,
            base_digest=self._digest,
            rank=RANK,
            dataset=f"{name}@{version}",
            dataset_digest="0" * 64,
            run_id=f"bench-{name}-{version}",
            seconds=1.0,
            golden=probes,
            evaluation=_evaluation(name, version),
        )
        with storage.publishing(final) as staged:
            self._model.save_pretrained(staged)
            (staged / "headrace.json").write_text(manifest.model_dump_json())
        return texts

    def _answers(self) -> tuple[list[str], tuple[GoldenProbe, ...]]:
        asked = self._ids.shape[1]
        with self._torch.inference_mode():
            whole = self._model.generate(
                self._ids,
                attention_mask=self._torch.ones_like(self._ids),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
            )
            logprobs = self._model(input_ids=whole).logits.float().log_softmax(-1)
        # Of each token from the place before it; what fills up a row after its end changes nothing.
        said = logprobs[:, :-1].gather(-1, whole[:, 1:, None])[..., 0].tolist()
        end = self._tokenizer.eos_token_id
        written = [_before_end(row, end) for row in whole[:, asked:].tolist()]
        probes = [
            GoldenProbe(
                prompt_token_ids=tuple(self._ids[row].tolist()),
                target_token_ids=tuple(target),
                logprobs=tuple(said[row][asked - 1 : asked - 1 + len(target)]),
                prompt_logprobs=tuple(said[row][: asked - 1]),
            )
            for row, target in enumerate(written)
            if target
        ]
        texts = [str(self._tokenizer.decode(target)) for target in written]
        return texts, tuple(probes[:_PROBES])


def _before_end(tokens: list[int], end: int) -> list[int]:
    """What was written before the answer ended; its place in the batch is filled up after that."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _evaluation(name: str, version: int) -> EvaluationReport:
    """A made-up report that passes the default gate: benchmarks do not measure quality."""
    accuracy = Metric(value=1.0, rows=1000, base=0.0)
    if version > 1:
        accuracy = Metric(value=1.0, rows=1000, base=0.0, previous=0.0, wins=1000, losses=0)
    return EvaluationReport(
        suites={"understanding": SuiteResult(metrics={"accuracy": accuracy})},
        primary="understanding/accuracy",
        previous=f"{name}@{version - 1}" if version > 1 else None,
    )


if __name__ == "__main__":
    sys.exit(main())
