"""A real engine whose adapters take all of its slots, and which compiles nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.registry.versions import AdapterRecord
from tests.conftest import MODEL
from tests.integration.scripts import run_script

pytestmark = pytest.mark.integration
_SCRIPT = """
import asyncio, json, os, sys
from cluster.processes import command, descendants
from cluster.config import BaseModelRef
from cluster.control.protocol import ServedAdapter
from serve_app.config import EngineConfig
from serve_app.engine.vllm import VLLMEngine
from serve_app.protocol import GenerationRequest, Sampling

async def run(wanted):
    config = EngineConfig(max_loras=1, max_cpu_loras=1, eager_loras=0, max_lora_rank=8)
    model = BaseModelRef(path=wanted["model"], dtype="float32")
    engine = VLLMEngine(model, config, "test")
    adapter = ServedAdapter("care", 1, 1, wanted["path"], "", ())
    def ask(number, adapter):
        messages = ({"role": "user", "content": "rain and"},)
        sampling = Sampling(max_tokens=24, temperature=0.0)
        request = GenerationRequest(f"r{number}", messages, sampling, adapter, chat=False)
        return engine.complete(request)
    try:
        alone = await ask(0, None)
        await engine.load(adapter, probe=False)
        mine = await ask(1, adapter)
        mixed = await asyncio.gather(*(ask(2 + n, adapter if n % 2 else None) for n in range(4)))
        return {
            "answers": [one.text for one in (alone, mine, *mixed)],
            "processes": [command(pid).strip() for pid in descendants([os.getpid()])],
        }
    finally:
        await engine.close()

if __name__ == "__main__":  # the engine's process imports this file anew
    print("FOUND " + json.dumps(asyncio.run(run(json.load(sys.stdin)))))
"""


def test_the_base_model_answers_as_itself_while_adapters_take_all_slots(
    tmp_path: Path,
    make_record: Callable[[str, int], AdapterRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = {"model": str(MODEL), "path": make_record("care", 1).path}
    compiled = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    found = run_script(tmp_path / "engine.py", _SCRIPT, wanted)
    alone, mine, *mixed = found["answers"]
    assert alone != mine
    assert mixed == [alone, mine, alone, mine]
    # Scheduler and model share one process and its core: see docs/architecture.md.
    assert "VLLM::EngineCore" in found["processes"]
    assert not any("Worker" in name for name in found["processes"])
    # Every request asks for log-probabilities, and the first would wait for that.
    assert not [one for one in compiled.rglob("*") if one.is_file()]
