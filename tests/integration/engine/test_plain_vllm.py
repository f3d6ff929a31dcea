"""A bundle in plain vLLM: nothing of Headrace's loads it, and it writes what its trainer did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.base_models import describe
from cluster.bundle import signing
from cluster.bundle.export import Source, export
from cluster.records.adapter import AdapterRecord
from tests.conftest import MODEL
from tests.integration.scripts import run_script

pytestmark = pytest.mark.integration
_PLAIN = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":  # its engine's process imports this file anew
    wanted = json.load(sys.stdin)
    llm = LLM(
        wanted["model"], dtype="float32", max_model_len=512, enforce_eager=True,
        enable_lora=bool(wanted["adapter"]), max_lora_rank=8, disable_log_stats=True,
    )
    lora = LoRARequest("care", 1, wanted["adapter"]) if wanted["adapter"] else None
    found = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in wanted["prompts"]],
        [SamplingParams(max_tokens=n, temperature=0.0) for n in wanted["lengths"]],
        lora_request=lora, use_tqdm=False,
    )
    print("FOUND " + json.dumps([list(one.outputs[0].token_ids) for one in found]))
"""


def _plain_vllm(wanted: dict[str, Any], script: Path) -> list[list[int]]:
    found: list[list[int]] = run_script(script, _PLAIN, wanted)
    return found


def test_plain_vllm_writes_the_same_with_the_merged_model_and_with_the_adapter(
    tmp_path: Path, make_record: Callable[[str, int], AdapterRecord]
) -> None:
    record = make_record("care", 1)
    manifest = record.manifest
    key = signing.own_key(tmp_path / "key.pem")
    source = Source(record, describe(MODEL), "# care@1\n")
    bundle = export(source, tmp_path / "bundle", key, "float32", lambda _line: None)
    asked = {
        "prompts": [probe.prompt_token_ids for probe in manifest.golden],
        "lengths": [len(probe.target_token_ids) for probe in manifest.golden],
    }
    expected = [list(probe.target_token_ids) for probe in manifest.golden]
    merged = {**asked, "model": str(bundle / "merged"), "adapter": None}
    assert _plain_vllm(merged, tmp_path / "plain.py") == expected
    beside = {**asked, "model": str(MODEL), "adapter": str(bundle / "adapter")}
    assert _plain_vllm(beside, tmp_path / "plain.py") == expected
