"""Whose evidence a verdict rests on, so that no few of a version's users pass it alone. Pure.

A key's holder chooses what it sends, and names its users itself: however many those are, what they
show is one key's word, and all keys of a tenant are one tenant's. Evidence is kept by key within
tenant; a verdict has to stand without any one tenant, and without any `HANDFUL` of keys, as long
as others use the version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping

from cluster.rollout.evidence import Evidence, Moments
from cluster.rollout.outcomes import Side
from cluster.rollout.sequential import FEWEST_GROUPS

#: Keys whose word alone is no verdict where other keys use the version too.
HANDFUL = 3
#: Keys and tenants that are kept apart by name; those that come later share cells by their hash, so
#: that a handful of them is in a handful of cells.
_NAMED, _NAMED_TENANTS, _SHARED = 48, 16, 8
#: Measures by which a key may make a candidate look bad, and whether more of it is worse.
_HARMS = (
    ("errors", 1),
    ("latency_ms", 1),
    ("confidence", -1),
    ("disliked", 1),
    ("escalated", 1),
    ("resolved", -1),
    ("rating", -1),
)

Cells = Mapping[str, Evidence]
"""Evidence by cell: an account, or what later accounts share."""


def account(tenant: str, key_id: str) -> str:
    """The name of a key as evidence is kept by it."""
    return f"{tenant}/{key_id}"


def tenant_of(cell: str) -> str:
    """The tenant of an account or a cell."""
    return cell.partition("/")[0]


def cell_of(name: str, known: Iterable[str]) -> str:
    """Where the evidence of account `name` is kept, `known` being the cells that there are."""
    kept = set(known)
    if name in kept or len(kept) < _NAMED:
        return name
    tenants = {tenant_of(cell) for cell in kept}
    own, strangers = _shared(name)
    named = tenant_of(name) in tenants or len(tenants) < _NAMED_TENANTS
    return own if named else strangers


def is_aside(aside: Iterable[str], name: str) -> bool:
    """Whether account `name` is set aside: itself, its tenant, or a cell that it may share."""
    found = set(aside)
    if not found:
        return False
    own, strangers = _shared(name)
    return not found.isdisjoint((name, tenant_of(name), own, strangers, tenant_of(strangers)))


def covers(names: Collection[str], cell: str) -> bool:
    """Whether `cell` is among `names`, itself or by its tenant."""
    return cell in names or tenant_of(cell) in names


def _shared(name: str) -> tuple[str, str]:
    """The cells that an account may share: with others of its tenant, and with other tenants."""
    tenant = tenant_of(name)
    return f"{tenant}/~{_hash(name) % _SHARED}", f"~{_hash(tenant) % _SHARED}/~"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def parts(phases: Mapping[int, Cells], owner: str) -> Iterator[frozenset[str]]:
    """Names, of tenants or of cells, that a verdict has to stand without, one set at a time.

    `phases` has the evidence by phase; `owner` is the adapter's tenant, which uses its own adapter
    whether or not it has sent anything yet. Every tenant is one, and so are the keys that did most
    for or against the candidate by each measure, and those that sent most, up to `HANDFUL` of them;
    never all there are.
    """
    cells = {cell for phase in phases.values() for cell in phase}
    seen = set[frozenset[str]]()
    for part in (*_tenants(cells, owner), *_handfuls(phases, cells)):
        if part not in seen:
            seen.add(part)
            yield part


def few(cells: Collection[str], owner: str) -> bool:
    """Whether `cells` alone are too few for a verdict: a handful, or one tenant, not the owner."""
    tenants = {tenant_of(cell) for cell in cells}
    return len(cells) <= HANDFUL or (len(tenants) == 1 and not tenants <= {"", owner})


def _tenants(cells: set[str], owner: str) -> Iterator[frozenset[str]]:
    names = sorted({tenant_of(cell) for cell in cells})
    alone = len(names) == 1 and (not owner or names[0] in ("", owner))
    if not alone:
        yield from (frozenset({name}) for name in names)


def _handfuls(phases: Mapping[int, Cells], cells: set[str]) -> Iterator[frozenset[str]]:
    for scores in (*_harm(phases, cells), _sizes(phases, cells)):
        for sign in (1, -1):
            ranked = sorted((-sign * score, cell) for cell, score in scores.items())
            most = [cell for score, cell in ranked if score < 0]
            for count in range(1, min(HANDFUL, len(most), len(cells) - 1) + 1):
                yield frozenset(most[:count])


def _harm(phases: Mapping[int, Cells], cells: set[str]) -> Iterator[dict[str, float]]:
    """By measure: what each cell adds to how bad the candidate looks."""
    for measure, sign in _HARMS:
        harm = dict.fromkeys(cells, 0.0)
        for phase in phases.values():
            before = sum((getattr(e.baseline, measure) for e in phase.values()), Moments()).mean
            for cell, evidence in phase.items():
                of: Moments = getattr(evidence.candidate, measure)
                harm[cell] += sign * (of.total - of.n * before)
        yield harm


def _sizes(phases: Mapping[int, Cells], cells: set[str]) -> dict[str, float]:
    sizes = dict.fromkeys(cells, 0.0)
    for phase in phases.values():
        for cell, evidence in phase.items():
            sizes[cell] += evidence.candidate.errors.n
    return sizes


def clusters(
    sides: Mapping[Side, Mapping[str, Mapping[int, Moments]]],
) -> dict[Side, dict[str, Moments]]:
    """What is independent of each other in an A/B test, by side: the keys where there are enough of
    them, else the groups of users within each."""
    cells = {cell for side in sides.values() for cell in side}
    by_key = len(cells) >= FEWEST_GROUPS
    found: dict[Side, dict[str, Moments]] = {}
    for name, side in sides.items():
        mine: dict[str, Moments] = {}
        for cell, groups in side.items():
            for group, said in groups.items():
                of = cell if by_key else f"{cell}\0{group}"
                mine[of] = mine.get(of, Moments()) + said
        found[name] = mine
    return found
