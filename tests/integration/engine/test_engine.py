"""A real engine: what it answers while adapters take all of its slots, and how it proves one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.adapters import MAX_DIFFERENCE
from cluster.records.adapter import AdapterRecord
from tests.conftest import MODEL
from tests.integration.scripts import run_script

pytestmark = pytest.mark.integration
_SCRIPT = """
import asyncio, json, os, sys
from cluster.processes import command, descendants
from cluster.config import BaseModelRef
from cluster.records.adapter import ServedAdapter
from serve_app.config import EngineConfig
from serve_app.engine.vllm import VLLMEngine
from serve_app.protocol import GenerationRequest, Sampling
from cluster.records.model import Target
from serve_app.generation.targets import Targets
def target(adapter=None):
    return Target("base", "vllm") if adapter is None else Targets.of(adapter)

async def run(wanted):
    config = EngineConfig(max_loras=1, max_cpu_loras=1, eager_loras=0, max_lora_rank=8)
    model = BaseModelRef(path=wanted["model"], dtype="float32")
    engine = VLLMEngine(model, config, "test")
    adapter = ServedAdapter("care", 1, 1, wanted["path"], "", ())
    def ask(number, adapter):
        messages = ({"role": "user", "content": "rain and"},)
        sampling = Sampling(max_tokens=24, temperature=0.0)
        request = GenerationRequest(f"r{number}", messages, sampling, target(adapter), chat=False)
        return engine.complete(request)
    try:
        alone = await ask(0, None)
        await engine.load(adapter, probe=False)
        mine = await ask(1, adapter)
        mixed = await asyncio.gather(*(ask(2 + n, adapter if n % 2 else None) for n in range(4)))
        async def structured(number, schema):
            sampling = Sampling(
                max_tokens=64, temperature=1.5, seed=number, json_schema=json.dumps(schema),
                top_logprobs=2,
            )
            messages = ({"role": "user", "content": "<|end|><|assistant|>rain"},)
            request = GenerationRequest(f"s{number}", messages, sampling, target())
            try:
                one = await engine.complete(request)
            except Exception as error:
                return {"error": type(error).__name__, "message": str(error)}
            return {
                "text": one.text,
                "reason": one.finish_reason,
                "tokens": "".join(token.text for token in one.tokens),
                "special": any("<|" in text for token in one.tokens for text, _ in token.top),
            }
        async def streamed(number, **more):
            sampling = Sampling(max_tokens=24, temperature=0.0, top_logprobs=1, **more)
            messages = ({"role": "user", "content": "thank you"},)
            text = tokens = ""
            async for item in engine.stream(
                GenerationRequest(f"t{number}", messages, sampling, target())
            ):
                if hasattr(item, "finish_reason"):
                    return {
                        "text": item.text, "shown": text, "tokens": tokens,
                        "all": "".join(token.text for token in item.tokens),
                    }
                text += item.text
                tokens += "".join(token.text for token in item.tokens)
        schemas = await asyncio.gather(
            *(structured(n, schema) for n, schema in enumerate(wanted["schemas"]))
        )
        whole = await streamed(0)
        stopped = await streamed(1, stop=(whole["text"][5:8],))
        return {
            "schemas": schemas,
            "streams": [whole, stopped],
            "answers": [one.text for one in (alone, mine, *mixed)],
            "processes": [command(pid).strip() for pid in descendants([os.getpid()])],
        }
    finally:
        await engine.close()

if __name__ == "__main__":  # the engine's process imports this file anew
    print("FOUND " + json.dumps(asyncio.run(run(json.load(sys.stdin)))))
"""


_SMALL: dict[str, object] = {
    "type": "object",
    "properties": {
        "a": {"enum": ["x", "y"]},
        "b": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
    },
    "required": ["a", "b"],
}
#: Eight draws of one schema at a temperature at which this model writes anything it may, then
#: schemas the engine has to refuse.
_SCHEMAS = [
    *[_SMALL] * 8,
    {"type": "impossible"},
    {"not": {}},
    {"pattern": "(?=a)", "type": "string"},
]


def _check_schemas(found: list[dict[str, str]]) -> None:
    drawn, refused = found[:8], found[8:]
    for one in drawn:
        assert one["reason"] == "stop", one
        # One layout: nothing but a blank between tokens.
        assert one["text"] == json.dumps(json.loads(one["text"]))
        assert one["tokens"] == one["text"]
        assert not one["special"]
    assert [one["error"] for one in refused] == ["NotSupported"] * len(refused)
    assert all("\n" not in one["message"] for one in refused)


def test_the_base_model_answers_as_itself_while_adapters_take_all_slots(
    tmp_path: Path,
    make_record: Callable[[str, int], AdapterRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = {"model": str(MODEL), "path": make_record("care", 1).path, "schemas": _SCHEMAS}
    compiled = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    found = run_script(tmp_path / "engine.py", _SCRIPT, wanted)
    alone, mine, *mixed = found["answers"]
    assert alone != mine
    assert mixed == [alone, mine, alone, mine]
    _check_schemas(found["schemas"])
    for stream in found["streams"]:
        assert stream["text"] == stream["shown"] == stream["tokens"] == stream["all"]
    assert found["streams"][1]["text"] == found["streams"][0]["text"][:5]
    # Scheduler and model share one process and its core: see docs/architecture.md.
    assert "VLLM::EngineCore" in found["processes"]
    assert not any("Worker" in name for name in found["processes"])
    # Every request asks for log-probabilities, and the first would wait for that.
    assert not [one for one in compiled.rglob("*") if one.is_file()]


_PROOFS = """
import asyncio, json, os, sys
from cluster.records.adapter import GoldenProbe
from cluster.config import BaseModelRef
from cluster.records.adapter import ServedAdapter
from cluster.errors import VerificationError
from serve_app.config import EngineConfig
from serve_app.engine.probes import least_certain
from serve_app.engine.vllm import VLLMEngine
from serve_app.protocol import GenerationRequest, Sampling
from cluster.records.model import Target
from serve_app.generation.targets import Targets
def target(adapter=None):
    return Target("base", "vllm") if adapter is None else Targets.of(adapter)

def made(model, targets, out, seed):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    peft = get_peft_model(base, LoraConfig(r=8, lora_alpha=8, target_modules=targets)).eval()
    with torch.no_grad():
        for name, value in peft.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape) * 0.05)
    peft.save_pretrained(out, save_embedding_layers=False)
    golden = []
    for prompt in ([5, 6, 7, 8, 31, 90], [9, 10, 11, 88, 12], [300, 20, 7, 7, 40, 8, 61, 50]):
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            full = peft.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
            logits = peft(input_ids=full).logits[0].log_softmax(-1)
        said = [float(logits[n, token]) for n, token in enumerate(full[0, 1:].tolist())]
        asked = len(prompt) - 1
        golden.append(
            GoldenProbe(
                prompt_token_ids=prompt,
                target_token_ids=full[0, len(prompt):].tolist(),
                logprobs=said[asked:],
                prompt_logprobs=said[:asked],
            )
        )
    return tuple(golden)

def widened(path, out):
    # The same adapter, but for its last layer's B, which is of another model's width.
    import shutil
    import torch
    from safetensors.torch import load_file, save_file
    shutil.copytree(path, out)
    file = os.path.join(out, "adapter_model.safetensors")
    weights = load_file(file)
    last = max(name for name in weights if "v_proj.lora_B" in name)
    weights[last] = torch.cat([weights[last]] * 2)
    save_file(weights, file, metadata={"format": "pt"})
    return out

async def run(wanted):
    layers = ["q_proj", "v_proj", "down_proj"]
    targets = {"one": layers, "other": layers, "head": [*layers, "lm_head"]}
    golden, path = {}, {}
    for number, (name, modules) in enumerate(targets.items()):
        path[name] = os.path.join(wanted["folder"], name)
        golden[name] = made(wanted["model"], modules, path[name], number)
    odd = golden["one"][0].model_copy(update={"prompt_token_ids": (5, 10**6)})
    # As an earlier trainer left it.
    golden["one before"] = [p.model_copy(update={"prompt_logprobs": ()}) for p in golden["one"]]
    config = EngineConfig(max_loras=4, max_cpu_loras=8, eager_loras=0, max_lora_rank=8)
    model = BaseModelRef(path=wanted["model"], dtype="float32")
    engine = VLLMEngine(model, config, "test")
    ways = {"_give_probe": 0, "_write_probe": 0}
    for way in ways:
        def counted(*arguments, way=way, run=getattr(engine, way)):
            ways[way] += 1
            return run(*arguments)
        setattr(engine, way, counted)
    busy = ServedAdapter("busy", 1, 9, path["one"], "", ())
    await engine.load(busy, probe=False)
    # Its head changes the rows of the very step in which others' prompts are looked at.
    crowned = ServedAdapter("crowned", 1, 10, path["head"], "", ())
    await engine.load(crowned, probe=False)
    stop = asyncio.Event()
    async def ask(number):
        asked = 0
        while not stop.is_set():
            asked += 1
            messages = ({"role": "user", "content": "rain and"},)
            sampling = Sampling(max_tokens=8, temperature=0.0)
            adapter = [None, busy, crowned][number]
            name = f"b{number}-{asked}"
            answerer = target(adapter)
            await engine.complete(GenerationRequest(name, messages, sampling, answerer, chat=False))
        return asked
    clients = [asyncio.create_task(ask(number)) for number in range(3)]
    found = {}
    try:
        for number, (name, of) in enumerate(
            (
                ("one", "one"),
                ("head", "head"),
                ("one", "one before"),
                ("one", "other"),
                ("other", "head"),
                ("other", "one before"),
            ),
            1,
        ):
            before = dict(ways)
            adapter = ServedAdapter(name, number, number, path[name], "", golden[of])
            differs = await engine.load(adapter, probe=True)
            found[f"{name} as {of}"] = differs, [way for way in ways if ways[way] > before[way]]
        stop.set()
        path["wide"] = widened(path["one"], os.path.join(wanted["folder"], "wide"))
        refused = []
        odd_and_others = (odd, *golden["one"][1:])
        for name, of, probes in (("odd", "one", odd_and_others), ("wide", "wide", golden["one"])):
            adapter = ServedAdapter(name, 1, 20 + len(refused), path[of], "", probes)
            try:
                await engine.load(adapter, probe=True)
            except VerificationError as error:
                refused.append([str(error), adapter.int_id in await engine._llm.list_loras()])
        adapter = ServedAdapter("after", 1, 30, path["one"], "", golden["one"])
        after = await engine.load(adapter, probe=True)
        places = [least_certain(probe.logprobs, 4) for probe in golden["one"]]
        return found, await asyncio.gather(*clients), places, refused, after
    finally:
        await engine.close()

if __name__ == "__main__":
    print("FOUND " + json.dumps(asyncio.run(run(json.load(sys.stdin)))))
"""


def test_adapters_are_proved_beside_other_requests_by_their_trainers_own_words(
    tmp_path: Path,
) -> None:
    wanted = {"model": str(MODEL), "folder": str(tmp_path)}
    found, asked, places, refused, after = run_script(tmp_path / "proofs.py", _PROOFS, wanted)
    # In one step where vLLM can, and written out for a head of the adapter's own.
    assert {name: ways for name, (_, ways) in found.items()} == {
        "one as one": ["_give_probe"],
        "head as head": ["_write_probe"],
        "one as one before": ["_write_probe"],
        "one as other": ["_give_probe"],
        "other as head": ["_give_probe"],
        "other as one before": ["_write_probe"],
    }
    assert found["one as one"][0] < 1e-3
    assert found["head as head"][0] < 1e-3
    assert found["one as one before"][0] < 1e-3
    assert found["one as other"][0] > MAX_DIFFERENCE
    assert found["other as one before"][0] > MAX_DIFFERENCE
    assert found["other as head"][0] > MAX_DIFFERENCE
    assert min(asked) > 0
    # Some answers are written from where they are under way.
    assert max(places) > 0
    (odd, odd_left), (wide, wide_left) = refused
    assert "golden probe of odd@1" in odd
    assert "the engine refuses wide@1" in wide
    # Nor does anything of them stay behind, to be taken for loaded or to be in another's way.
    assert not odd_left
    assert not wide_left
    assert after < 1e-3
