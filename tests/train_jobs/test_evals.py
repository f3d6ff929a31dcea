from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from cluster.config import BaseModelRef, load
from cluster.errors import ArtifactError
from cluster.workload import TurnRecord
from tests.conftest import REPOSITORY
from train_jobs.batches import IGNORE, PromptCompletions, chat_ids
from train_jobs.config import EvalConfig, TrainConfig
from train_jobs.evals.understanding import Evaluator, score
from train_jobs.loop import learning_rate
from train_jobs.publish import check_weights

MODEL = REPOSITORY / "cluster" / "models" / "headrace-mini"


def _turn(intent: str, **slots: list[str]) -> TurnRecord:
    return TurnRecord(id="1", domain="a", text="t", intent=intent, slots=slots)


def test_scoring_counts_intents_and_slot_pairs() -> None:
    turns = [_turn("a", x=["1", "2"]), _turn("b"), _turn("c")]
    answers = ['{"intent": "a", "slots": {"x": ["1", "3"]}}', "not json", '{"intent": "x"}']
    found = score(answers, turns)
    assert found.correct == [True, False, False]
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.slot_f1 == pytest.approx(0.5)


def test_only_the_completion_carries_loss() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    collator = PromptCompletions(tokenizer, 64)
    prompt = '[{"role": "user", "content": "hi"}]'
    batch = collator({"prompt": [prompt, prompt], "completion": ["yes", "y " * 90]})
    start = len(chat_ids(tokenizer, [{"role": "user", "content": "hi"}]))
    end = int(batch["attention_mask"][0].sum())
    assert (batch["labels"][0, :start] == IGNORE).all()
    assert torch.equal(batch["labels"][0, start:end], batch["input_ids"][0, start:end])
    assert tokenizer.decode(batch["input_ids"][0, :end]).endswith("<|assistant|>yes<|end|>")
    assert (batch["labels"][1] == IGNORE).all()
    assert collator.too_long == 1


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = load(TrainConfig, REPOSITORY / "configs" / "train" / "local.yaml")
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] < rates[4] > rates[50] > rates[99] > 0
    assert max(rates) <= config.learning_rate


@pytest.mark.parametrize(
    ("tensor", "message"),
    [(torch.tensor([float("nan")]), "finite"), (torch.zeros(3), "changes nothing")],
)
def test_weights_that_must_not_serve_are_refused(
    tmp_path: Path, tensor: torch.Tensor, message: str
) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"layer.lora_B.weight": tensor}, path)
    with pytest.raises(ArtifactError, match=message):
        check_weights(path)


def test_the_base_model_is_scored_once(tmp_path: Path) -> None:
    ref = BaseModelRef(path=str(MODEL))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    turns, config = [_turn("a"), _turn("b")], EvalConfig(max_new_tokens=8)
    first = Evaluator(ref, "digest", tokenizer, turns, config, tmp_path).run(None)
    assert len(first.correct) == 2
    (kept,) = tmp_path.iterdir()
    # No tokenizer, no model: only the kept score can answer.
    nothing = BaseModelRef(path="/nonexistent")
    assert Evaluator(nothing, "digest", None, turns, config, tmp_path).run(None) == first
    kept.unlink()
    with pytest.raises(OSError, match="nonexistent"):
        Evaluator(nothing, "digest", None, turns, config, tmp_path).run(None)
