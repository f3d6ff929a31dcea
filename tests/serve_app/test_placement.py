"""Placement: as many replicas as an adapter's traffic needs, the same for every gateway."""

import asyncio
import random
from itertools import pairwise
from typing import Any

import pytest

from cluster.control.load_shares import LoadShares
from cluster.records.adapter import ServedAdapter
from serve_app.generation.providers.placement import Placement, copies, ranked
from serve_app.rpc.client import ReplicaLost
from serve_app.rpc.server import Address

REPLICAS = [f"r{number}" for number in range(8)]


def _adapter(name: str) -> ServedAdapter:
    return ServedAdapter(name, 1, abs(hash(name)) % 10**6, f"/{name}", "d")


class Replica:
    """A connection; `holds` is what it says when it is asked to load something."""

    def __init__(self, name: str) -> None:
        self.address = Address(name, "h", 1, b"")
        self.under_way = 0
        self.asked: list[str] = []
        self.holds: bool | Exception = True

    async def call(self, method: str, adapter: ServedAdapter) -> bool:
        assert method == "hold"
        self.asked.append(adapter.name)
        await asyncio.sleep(0)
        if isinstance(self.holds, Exception):
            raise self.holds
        return self.holds


def _fleet() -> list[Any]:
    return [Replica(name) for name in REPLICAS]


def _names(found: list[Any]) -> set[str]:
    return {one.address.replica for one in found}


@pytest.mark.parametrize(
    ("share", "replicas", "expected"),
    [(0.0, 8, 1), (0.05, 8, 1), (0.2, 8, 4), (0.5, 8, 8), (1.0, 8, 8), (1.0, 1, 1), (0.3, 3, 2)],
)
def test_copies_follow_the_load(share: float, replicas: int, expected: int) -> None:
    assert copies(share, replicas) == expected


def test_one_replica_less_moves_only_what_it_had() -> None:
    names = [f"adapter-{number}" for number in range(400)]
    before = {name: ranked(name, REPLICAS)[0] for name in names}
    after = {name: ranked(name, REPLICAS[:-1])[0] for name in names}
    assert all(after[name] == before[name] for name in names if before[name] != REPLICAS[-1])
    held = [list(before.values()).count(replica) for replica in REPLICAS]
    assert min(held) > 400 / 8 / 2


async def test_a_cold_adapter_goes_to_one_replica_from_every_gateway() -> None:
    fleet = _fleet()
    first = Placement(lambda _name: 0.0).of(_adapter("care"), fleet)
    shuffled = random.Random(1).sample(fleet, len(fleet))
    assert _names(first) == _names(Placement(lambda _name: 0.0).of(_adapter("care"), shuffled))
    assert len(first) == 1
    await asyncio.sleep(0.01)
    assert all(not replica.asked for replica in fleet)


async def test_a_new_home_is_asked_while_the_former_one_answers() -> None:
    fleet, care = _fleet(), _adapter("care")
    home, former = ranked("care", REPLICAS)[:2]
    smaller = [one for one in fleet if one.address.replica != home]
    placement = Placement(lambda _name: 0.0)
    assert _names(placement.of(care, smaller)) == {former}
    placement.answered(former, care)
    assert _names(placement.of(care, fleet)) == {former}, "the new one does not hold it yet"
    await asyncio.sleep(0.01)
    assert _names(placement.of(care, fleet)) == {home}
    assert {one.address.replica for one in fleet if one.asked} == {home}


async def test_a_replica_gets_requests_once_it_holds_the_adapter() -> None:
    fleet, share = _fleet(), {"care": 0.0}
    placement = Placement(lambda name: share[name])
    adapter = _adapter("care")
    [home] = placement.of(adapter, fleet)
    placement.answered(home.address.replica, adapter)
    share["care"] = 0.25
    assert _names(placement.of(adapter, fleet)) == {home.address.replica}
    await asyncio.sleep(0.01)
    wanted = set(ranked("care", REPLICAS)[:4])
    assert _names(placement.of(adapter, fleet)) == wanted
    assert {r.address.replica for r in fleet if r.asked} == wanted - {home.address.replica}
    assert all(len(replica.asked) <= 1 for replica in fleet)


@pytest.mark.parametrize("answer", [False, ReplicaLost("gone")])
async def test_a_replica_that_does_not_load_it_is_asked_again(answer: bool | Exception) -> None:
    fleet = _fleet()
    placement, adapter = Placement(lambda _name: 0.25), _adapter("care")
    for replica in fleet:
        replica.holds = answer
    for round_ in (1, 2):
        found = placement.of(adapter, fleet)
        assert _names(found) == {ranked("care", REPLICAS)[0]}
        await asyncio.sleep(0.01)
        assert sum(len(replica.asked) for replica in fleet) == 4 * round_


async def test_one_that_lacks_it_is_passed_over_for_a_while() -> None:
    fleet, care, now = _fleet(), _adapter("care"), [0.0]
    placement = Placement(lambda _name: 0.0, lambda: now[0])
    order = ranked("care", REPLICAS)
    for lacking, home in pairwise(order):
        placement.missed(lacking, care)
        assert _names(placement.of(care, fleet)) == {home}
    assert _names(placement.of(_adapter("other"), fleet)) == {ranked("other", REPLICAS)[0]}
    placement.missed(order[-1], care)
    assert _names(placement.of(care, fleet)) == {order[0]}, "somebody has to be asked"
    placement.answered(order[3], care)
    now[0] = 5.0
    assert _names(placement.of(care, fleet)) == {order[3]}, "it holds it; the first is asked to"
    await asyncio.sleep(0.01)
    assert _names(placement.of(care, fleet)) == {order[0]}


async def test_one_replica_takes_everything() -> None:
    [alone] = _fleet()[:1]
    assert Placement(lambda _name: 0.0).of(_adapter("care"), [alone]) == [alone]


def test_shares_follow_the_traffic_and_forget() -> None:
    traffic = LoadShares()
    assert traffic.shares(["a", "b"], 0.0) == {"a": 0.0, "b": 0.0}
    traffic.add("a", 300.0, 0.0)
    traffic.add("b", 100.0, 0.0)
    traffic.add("other", 1e9, 0.0)
    shares = traffic.shares(["b", "a", "c"], 0.0)
    assert list(shares) == ["a", "b", "c"]
    assert shares["a"] == pytest.approx(0.75)
    traffic.add("b", 100.0, 600.0)
    assert traffic.shares(["a", "b"], 600.0)["b"] == pytest.approx(125 / 200)
    assert traffic.shares(["a", "b"], 1e6) == {"a": 0.0, "b": 0.0}
