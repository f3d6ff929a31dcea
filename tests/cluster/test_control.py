"""The control plane as a plain object: real SQLite and PostgreSQL, a fake fleet."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cluster.audit import ChainWriter, verify
from cluster.control.plane import ControlPlane
from cluster.control.protocol import Proof
from cluster.errors import ArtifactError, ConflictError, NotFoundError, SwapError
from cluster.records.adapter import ServedAdapter
from cluster.records.keys import KeyRequest, digest
from cluster.records.labels import GivenLabel, LabelTask
from cluster.records.model import BaseModelInfo
from cluster.types import AdapterVersion, Principal, Role, VersionState
from tests.fakes.evaluations import CLOSED, report
from tests.fakes.fleet import FakeFleet

BASE = BaseModelInfo(name="headrace-mini", path="/base", digest="0" * 64, licence="apache-2.0")
BY = "test"
SECOND = report(previous="inventory@1", previous_accuracy=0.8, wins=60, losses=10)
V1, V2 = AdapterVersion("inventory", 1), AdapterVersion("inventory", 2)
ACME = Principal("k", "acme", frozenset({Role.INFERENCE}))


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture
async def control(url: str, fleet: FakeFleet, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane(url, fleet, max_rank=32, audit=tmp_path / "audit")
    await plane.serving.serve_base(BASE, BY)
    yield plane
    plane.close()


async def _live_v1(control: ControlPlane, make_adapter: Callable[..., Path]) -> None:
    await control.adapters.register(str(make_adapter()), "acme", BY)
    await control.evaluations.judge(V1, BY)
    await control.serving.promote(V1, BY)


def _slow(fleet: FakeFleet) -> tuple[asyncio.Event, asyncio.Event]:
    """From now on a proof is under way once the first is set, and goes on with the second."""
    proving, go = asyncio.Event(), asyncio.Event()
    prepare = fleet.prepare

    async def slowly(adapter: ServedAdapter) -> list[Proof]:
        proving.set()
        await go.wait()
        return await prepare(adapter)

    fleet.prepare = slowly  # type: ignore[method-assign]
    return proving, go


async def _passed_v2(control: ControlPlane, make_adapter: Callable[..., Path]) -> None:
    path = make_adapter(version=2, evaluation=SECOND)
    await control.adapters.register(str(path), "acme", BY)
    await control.evaluations.judge(V2, BY)


async def test_a_swap_proves_the_new_version_and_then_retires_the_old(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
) -> None:
    await _live_v1(control, make_adapter)
    path = make_adapter(version=2, evaluation=SECOND)
    await control.adapters.register(str(path), "acme", BY)
    assert (await control.evaluations.judge(V2, BY)).passed
    report = await control.serving.promote(V2, BY)
    assert fleet.calls == ["prepare inventory@1", "prepare inventory@2", "retire 1"]
    assert (report.previous, report.current, report.removed) == ("inventory@1", "inventory@2", True)
    table = await control.serving.table()
    assert table.resolve(ACME, "inventory").label == "inventory@2"  # type: ignore[union-attr]
    assert table.resolve(ACME, "inventory@1") is None


@pytest.mark.parametrize("fault", ["difference", "digest", "raises"])
async def test_an_unproved_version_never_serves(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
    fault: str,
) -> None:
    await _live_v1(control, make_adapter)
    await control.adapters.register(str(make_adapter(version=2, evaluation=SECOND)), "acme", BY)
    await control.evaluations.judge(V2, BY)
    if fault == "difference":
        fleet.difference = float("nan")
    elif fault == "digest":
        fleet.digest = "other"
    else:
        fleet.fail_on = "prepare"
    before = await control.serving.table()
    with pytest.raises(SwapError):
        await control.serving.promote(V2, BY)
    assert await control.serving.table() == before
    assert fleet.calls[-1] == "remove 2"
    assert [adapter.label for adapter in await control.serving.desired()] == ["inventory@1"]


async def test_only_a_gated_version_is_promoted(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await control.adapters.register(str(make_adapter()), "acme", BY)
    with pytest.raises(ConflictError, match="candidate"):
        await control.serving.promote(V1, BY)


async def test_a_refused_version_stays_refused(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await control.evaluations.set_rules("inventory", CLOSED, BY)
    await control.adapters.register(str(make_adapter()), "acme", BY)
    assert await control.evaluations.rules("inventory") == CLOSED
    assert not (await control.evaluations.judge(V1, BY)).passed
    with pytest.raises(ConflictError, match="rejected"):
        await control.serving.promote(V1, BY)
    with pytest.raises(ConflictError, match="rejected"):
        await control.evaluations.judge(V1, BY)


async def test_an_evaluation_against_another_version_does_not_count(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    await control.adapters.register(str(make_adapter(version=2)), "acme", BY)
    with pytest.raises(ConflictError, match="evaluate it again"):
        await control.evaluations.judge(V2, BY)


async def test_a_version_that_served_before_may_serve_again(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    await _passed_v2(control, make_adapter)
    await control.serving.promote(V2, BY)
    report = await control.serving.promote(V1, BY)
    assert (report.previous, report.current) == ("inventory@2", "inventory@1")
    assert (await control.serving.table()).live["inventory"].label == "inventory@1"
    states = {str(r.id): r.state for r in await control.adapters.listed()}
    assert states == {"inventory@1": "live", "inventory@2": "retired"}


async def test_altered_files_are_not_promoted(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    path = make_adapter()
    await control.adapters.register(str(path), "acme", BY)
    await control.evaluations.judge(V1, BY)
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="altered"):
        await control.serving.promote(V1, BY)


async def test_a_restarted_control_plane_serves_the_same_table(
    control: ControlPlane, url: str, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    await _live_v1(control, make_adapter)
    again = ControlPlane(url, FakeFleet(), max_rank=32, audit=tmp_path / "audit")
    assert (await again.serving.table()).live == (await control.serving.table()).live


async def test_watchers_hear_of_a_flip(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await control.adapters.register(str(make_adapter()), "acme", BY)
    await control.evaluations.judge(V1, BY)
    generation = (await control.serving.table()).generation
    assert (await control.serving.watch(generation, 0.01)).generation == generation
    waiting = asyncio.create_task(control.serving.watch(generation, 30.0))
    await asyncio.sleep(0)
    await control.serving.promote(V1, BY)
    assert "inventory" in (await waiting).live


async def test_a_drain_holds_up_no_other_adapter(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
) -> None:
    await _live_v1(control, make_adapter)
    await _passed_v2(control, make_adapter)
    await control.adapters.register(str(make_adapter(name="other")), "acme", BY)
    await control.evaluations.judge(AdapterVersion("other", 1), BY)
    draining, over = asyncio.Event(), asyncio.Event()

    async def retire(int_id: int, _timeout_s: float) -> bool:
        draining.set()
        await over.wait()
        return True

    fleet.retire = retire  # type: ignore[method-assign, assignment]
    swap = asyncio.create_task(control.serving.promote(V2, BY))
    await draining.wait()
    await control.serving.promote(AdapterVersion("other", 1), BY)
    assert (await control.serving.table()).live.keys() == {"inventory", "other"}
    other = BASE.model_copy(update={"digest": "2" * 64})
    replacing = asyncio.create_task(control.serving.serve_base(other, BY))
    await asyncio.sleep(0.05)
    assert not replacing.done(), "a base is replaced when nothing is under way"
    over.set()
    await swap
    assert sorted(await replacing) == ["inventory@1", "inventory@2", "other@1"]


async def test_another_base_model_takes_its_adapters_out_of_service(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    other = BASE.model_copy(update={"digest": "2" * 64})
    assert await control.serving.serve_base(other, BY) == ["inventory@1"]
    assert (await control.serving.table()).live == {}
    ended = [event["subject"] for event in await control.events.newest(9)]
    assert "inventory@1" in ended, "its adapter hours end here"


async def test_a_base_is_replaced_after_the_swap_under_way(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
) -> None:
    await _live_v1(control, make_adapter)
    await _passed_v2(control, make_adapter)
    proving, go = _slow(fleet)
    swap = asyncio.create_task(control.serving.promote(V2, BY))
    await proving.wait()
    other = BASE.model_copy(update={"name": "other", "digest": "1" * 64})
    serving = asyncio.create_task(control.serving.serve_base(other, BY))
    await asyncio.sleep(0)
    go.set()
    await swap
    assert await serving == ["inventory@1", "inventory@2"]
    assert (await control.serving.table()).live == {}
    states = {record.id: record.state for record in await control.adapters.listed()}
    assert states == dict.fromkeys((V1, V2), VersionState.RETIRED)


async def test_gateways_forget_keys_when_one_ends(control: ControlPlane) -> None:
    key = await control.keys.issue(KeyRequest(tenant="acme"), BY)
    before = await control.serving.table()
    await control.keys.revoke(key.key_id, BY)
    after = await control.serving.table()
    assert after.keys > before.keys
    assert after.generation > before.generation
    await control.keys.suspend_tenant("acme", True, BY)
    assert (await control.serving.table()).keys > after.keys


async def test_a_grant_reaches_the_gateways(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    rival = Principal("k", "rival", frozenset())
    await control.keys.issue(KeyRequest(tenant="rival"), BY)
    assert (await control.serving.table()).resolve(rival, "inventory") is None
    await control.adapters.grant("inventory", "rival", True, BY)
    assert (await control.serving.table()).resolve(rival, "inventory") is not None
    await control.adapters.grant("inventory", "rival", False, BY)
    assert (await control.serving.table()).resolve(rival, "inventory") is None


async def test_keys_are_stored_as_digests(control: ControlPlane, tmp_path: Path) -> None:
    request = KeyRequest(tenant="acme", attributes={"tier": "gold"})
    secret = (await control.keys.issue(request, BY)).secret
    principal = await control.keys.resolve(digest(secret))
    assert principal is not None
    assert (principal.tenant, principal.attributes) == ("acme", {"tier": "gold"})
    assert not principal.may(Role.LABEL)
    assert await control.keys.resolve(digest(secret + "x")) is None
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("registry.db*"))
    assert secret.encode() not in stored


def _task(trace_id: str, tenant: str = "acme") -> LabelTask:
    return LabelTask(
        trace_id=trace_id,
        tenant=tenant,
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
    assert await control.labels.enqueue([_task("a"), _task("b")]) == 2
    assert await control.labels.enqueue([_task("a")]) == 0
    claimed = await control.labels.claim("acme", "ann", 1)
    assert [task.trace_id for task in claimed] == ["a"]
    assert [task.trace_id for task in await control.labels.claim("acme", "ben", 5)] == ["b"]
    with pytest.raises(ConflictError, match="claimed by another"):
        await control.labels.submit("acme", [_label("a", "ben")])
    assert await control.labels.submit("acme", [_label("a")]) == 1
    assert [label.trace_id for label in await control.labels.given("acme", "inventory")] == ["a"]
    # One's own label may be corrected, another's may not.
    assert await control.labels.submit("acme", [_label("a")]) == 1
    with pytest.raises(ConflictError, match="has a label of another annotator"):
        await control.labels.submit("acme", [_label("a", "ben")])
    with pytest.raises(NotFoundError, match="not in the label queue"):
        await control.labels.submit("acme", [_label("zzz")])
    counts = await control.labels.counts("acme")
    assert (counts["labelled"], counts["claimed"]) == (1, 1)


async def test_a_key_for_some_adapters_claims_what_those_answered(control: ControlPlane) -> None:
    await control.labels.enqueue([_task("a")])
    assert await control.labels.claim("acme", "ann", 5, ["other"]) == []
    found = await control.labels.claim("acme", "ann", 5, ["other", "inventory"])
    assert [task.trace_id for task in found] == ["a"]


async def test_a_tenants_traces_are_labelled_by_its_own_experts(control: ControlPlane) -> None:
    await control.labels.enqueue([_task("a"), _task("r", "rival")])
    assert [task.trace_id for task in await control.labels.claim("rival", "eve", 9)] == ["r"]
    with pytest.raises(NotFoundError, match="not in the label queue"):
        await control.labels.submit("rival", [_label("a", "eve")])
    await control.labels.submit("rival", [_label("r", "eve")])
    assert await control.labels.given("acme", "inventory") == []
    assert (await control.labels.counts("acme"))["labelled"] == 0
    assert (await control.labels.counts("rival"))["labelled"] == 1


async def test_the_first_control_plane_that_keeps_writers_enters_those_there_are(
    tmp_path: Path,
) -> None:
    folder, database = tmp_path / "audit", f"sqlite:///{tmp_path / 'registry.db'}"
    ChainWriter(folder, "gateway-of-before").append([{"trace_id": "tr-1"}])
    first = ControlPlane(database, FakeFleet(), max_rank=32, audit=folder)
    assert verify(folder, *await first.usage.writers()).verified
    first.close()
    ChainWriter(folder, "forged").append([{"trace_id": "f-1"}])
    second = ControlPlane(database, FakeFleet(), max_rank=32, audit=folder)
    found = verify(folder, *await second.usage.writers())
    assert found.faults == ["forged.jsonl: no writer of that name is on record"]
    second.close()
