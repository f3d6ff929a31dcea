"""The control plane as a plain object: real SQLite, a fake fleet."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.adapters import Evaluation
from cluster.control.actor import ControlPlane
from cluster.errors import ArtifactError, ConflictError, SwapError
from cluster.registry.keys import digest
from cluster.registry.labels import GivenLabel, LabelTask
from cluster.rollout.gate import GateConfig
from cluster.types import AdapterVersion, Role
from tests.fakes.fleet import FakeFleet

V1, V2 = AdapterVersion("inventory", 1), AdapterVersion("inventory", 2)
OPEN = GateConfig(min_accuracy=0.0, max_p_value=1.0, min_gain=-1.0)


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"


@pytest.fixture
def control(database: str, fleet: FakeFleet) -> ControlPlane:
    return ControlPlane(database, fleet, max_rank=32)


async def _live_v1(control: ControlPlane, make_adapter: Callable[..., Path]) -> None:
    await control.register_candidate(str(make_adapter()))
    await control.gate(V1, OPEN)
    await control.promote(V1)


def _second(evaluation: Evaluation) -> Evaluation:
    return evaluation.model_copy(
        update={"previous": "inventory@1", "previous_accuracy": 0.8, "wins": 60, "losses": 10}
    )


async def test_a_swap_proves_flips_drains_and_removes_in_that_order(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
    evaluation: Evaluation,
) -> None:
    await _live_v1(control, make_adapter)
    path = make_adapter(version=2, evaluation=_second(evaluation))
    await control.register_candidate(str(path))
    assert (await control.gate(V2, OPEN)).passed
    report = await control.promote(V2)
    assert fleet.calls == ["prepare inventory@1", "prepare inventory@2", "drain 1", "remove 1"]
    assert (report.previous, report.current, report.removed) == ("inventory@1", "inventory@2", True)
    table = await control.table()
    assert table.resolve("inventory").label == "inventory@2"  # type: ignore[union-attr]
    assert table.resolve("inventory@1") is None


@pytest.mark.parametrize("fault", ["difference", "digest", "raises"])
async def test_an_unproved_version_never_serves(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
    evaluation: Evaluation,
    fault: str,
) -> None:
    await _live_v1(control, make_adapter)
    await control.register_candidate(str(make_adapter(version=2, evaluation=_second(evaluation))))
    await control.gate(V2, OPEN)
    if fault == "difference":
        fleet.difference = float("nan")
    elif fault == "digest":
        fleet.digest = "other"
    else:
        fleet.fail_on = "prepare"
    before = await control.table()
    with pytest.raises(SwapError):
        await control.promote(V2)
    assert await control.table() == before
    assert fleet.calls[-1] == "remove 2"
    assert [adapter.label for adapter in await control.desired()] == ["inventory@1"]


async def test_only_a_gated_version_is_promoted(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await control.register_candidate(str(make_adapter()))
    with pytest.raises(ConflictError, match="candidate"):
        await control.promote(V1)


async def test_a_refused_version_stays_refused(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await control.register_candidate(str(make_adapter()))
    assert not (await control.gate(V1, GateConfig(min_accuracy=0.99))).passed
    with pytest.raises(ConflictError, match="rejected"):
        await control.promote(V1)
    with pytest.raises(ConflictError, match="rejected"):
        await control.gate(V1, OPEN)


async def test_an_evaluation_against_another_version_does_not_count(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    await control.register_candidate(str(make_adapter(version=2)))
    with pytest.raises(ConflictError, match="evaluate it again"):
        await control.gate(V2, OPEN)


async def test_altered_files_are_not_promoted(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    path = make_adapter()
    await control.register_candidate(str(path))
    await control.gate(V1, OPEN)
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="altered"):
        await control.promote(V1)


async def test_a_restarted_control_plane_serves_the_same_table(
    control: ControlPlane, database: str, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    again = ControlPlane(database, FakeFleet(), max_rank=32)
    assert (await again.table()).live == (await control.table()).live


async def test_watchers_hear_of_a_flip(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    generation = (await control.table()).generation
    assert (await control.watch(generation, 0.01)).generation == generation
    waiting = asyncio.create_task(control.watch(generation, 30.0))
    await asyncio.sleep(0)
    await _live_v1(control, make_adapter)
    assert "inventory" in (await waiting).live


async def test_keys_are_stored_as_digests(control: ControlPlane, tmp_path: Path) -> None:
    secret = await control.issue_key("acme", [Role.INFERENCE], {"tier": "gold"})
    principal = await control.resolve_key(digest(secret))
    assert principal is not None
    assert (principal.tenant, principal.attributes) == ("acme", {"tier": "gold"})
    assert not principal.may(Role.LABEL)
    assert await control.resolve_key(digest(secret + "x")) is None
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("registry.db*"))
    assert secret.encode() not in stored


def _task(trace_id: str) -> LabelTask:
    return LabelTask(
        trace_id=trace_id,
        reason="low_confidence",
        adapter="inventory",
        version="inventory@1",
        text="hi",
        answer="{}",
        confidence=0.4,
        prompt=({"role": "user", "content": "hi"},),
    )


def _label(trace_id: str, annotator: str = "ann") -> GivenLabel:
    return GivenLabel(
        trace_id=trace_id, adapter="inventory", answer='{"intent": "x"}', annotator=annotator
    )


async def test_a_trace_is_queued_once_and_labelled_by_its_claimant(control: ControlPlane) -> None:
    assert await control.enqueue_labels([_task("a"), _task("b")]) == 2
    assert await control.enqueue_labels([_task("a")]) == 0
    claimed = await control.claim_labels("ann", 1)
    assert [task.trace_id for task in claimed] == ["a"]
    assert [task.trace_id for task in await control.claim_labels("ben", 5)] == ["b"]
    with pytest.raises(ConflictError, match="claimed by another"):
        await control.submit_labels([_label("a", "ben")])
    assert await control.submit_labels([_label("a")]) == 1
    assert [row["trace_id"] for row in await control.labelled("inventory")] == ["a"]
    with pytest.raises(ConflictError, match="not in the label queue"):
        await control.submit_labels([_label("zzz")])
    counts = await control.label_counts()
    assert (counts["labelled"], counts["claimed"]) == (1, 1)
