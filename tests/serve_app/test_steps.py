"""What crosses to a stage and back: enough for its work, and never the masked values."""

from __future__ import annotations

import copy
import time

import pytest

from cluster.policy.decision import Override
from cluster.policy.rules import PolicyConfig
from cluster.policy.rules.discount_cap import DiscountCap, MaxDiscount
from cluster.policy.rules.vip_route import VipRoute
from cluster.records.trace import Route, Verdicts
from serve_app.config import MonitoringConfig
from serve_app.pipeline.steps import AFTER, AUDIT, BEFORE, STEPS, Step, run, settle
from serve_app.protocol import Envelope, Generation, Sampling, Stage
from serve_app.stages.data_prep import DataPrep
from serve_app.stages.governance import Governance
from serve_app.stages.monitoring import Monitoring
from serve_app.stages.policy import Policy

_RULES = PolicyConfig(
    rules=(
        VipRoute(type="vip_route", attribute="tier", equals="vip", adapter="care"),
        DiscountCap(type="discount_cap", max_percent=20, unless_attribute="tier", equals="gold"),
    )
)
_STAGES: dict[str, Stage] = {
    "data_prep": DataPrep(),
    "governance": Governance(),
    "policy": Policy(_RULES),
    "monitoring": Monitoring(MonitoringConfig()),
}


def _full(step: Step) -> Envelope:
    messages = [{"role": "user", "content": "call  415-555-0132 for 40% off"}]
    envelope = Envelope("tr-1", 1.0, "acme", {"tier": "vip"}, "auto", messages, Sampling())
    envelope.route = Route("loyalty", "points", 0.9, 0.1, "intent")
    envelope.constraints = (MaxDiscount(20),)
    if step.name in {"governance_out", "monitoring"}:
        envelope.generation = Generation(
            "mail a@b.example.com for 40% off",
            "loyalty@1",
            3,
            4,
            "stop",
            -2.0,
            -3.0,
            None,
            5.0,
            "r",
        )
    return envelope


@pytest.mark.parametrize(
    "step", [s for s in STEPS.values() if s.stage in _STAGES], ids=lambda step: step.name
)
async def test_a_stage_does_the_same_on_its_view_as_on_the_whole_envelope(step: Step) -> None:
    stage, whole, seen = _STAGES[step.stage], _full(step), _full(step)
    await stage([whole])
    (row,) = await run(stage, step, [copy.deepcopy(step.take(seen))], [time.time() + 9])
    step.put(seen, row)
    assert {name: getattr(seen, name) for name in step.writes} == {
        name: getattr(whole, name) for name in step.writes
    }
    assert seen == whole


def test_steps_side_by_side_write_different_fields() -> None:
    for group in (*BEFORE, *AFTER):
        written = [name for step in group for name in step.writes]
        assert len(written) == len(set(written))


def test_masked_values_cross_to_no_later_stage() -> None:
    later = [step for step in STEPS.values() if step.name != "governance"]
    assert all("vault" not in step.reads for step in later)
    assert "counting" not in AUDIT.reads, "it is the gateway's own"
    assert "messages" in AUDIT.reads


def test_what_side_by_side_steps_said_is_brought_together() -> None:
    envelope = _full(AUDIT)
    envelope.override = Override("care", "vip_route")
    envelope.conflicts = ["asked for more than 20% discount"]
    envelope.verdicts = Verdicts(0.9, 0.9, [], sampled=True)
    settle(envelope)
    settle(envelope)
    assert envelope.route is not None
    assert (envelope.route.adapter, envelope.route.instead_of) == ("care", "loyalty")
    assert envelope.verdicts.reasons == ["policy_conflict"]
    assert not envelope.verdicts.sampled
