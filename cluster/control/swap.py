"""The proven swap: prepare everywhere, check the proofs, flip, drain and remove.

Owns the order of the steps. It touches no database and no Ray; the flip is the caller's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cluster.adapters import MAX_DIFFERENCE
from cluster.control.protocol import Fleet, Proof, SwapReport
from cluster.errors import SwapError, VerificationError
from cluster.records.adapter import ServedAdapter

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 30.0


def check_proofs(adapter: ServedAdapter, proofs: list[Proof]) -> float:
    """The worst difference shown.

    Raises:
        VerificationError: a replica holds other weights than the trainer's.
        SwapError: no replica answered.
    """
    if not proofs:
        raise SwapError(f"no engine replica answered for {adapter.label}")
    for proof in proofs:
        if proof.digest != adapter.digest:
            raise VerificationError(
                f"replica {proof.replica} read other files than {adapter.label} has"
            )
        if not proof.mean_difference <= MAX_DIFFERENCE:
            raise VerificationError(
                f"replica {proof.replica}: {adapter.label} is {proof.mean_difference:.3f} nats a "
                f"token away from its trainer (at most {MAX_DIFFERENCE})"
            )
    return max(proof.mean_difference for proof in proofs)


async def swap(
    fleet: Fleet,
    new: ServedAdapter,
    old: ServedAdapter | None,
    flip: Callable[[], None],
) -> SwapReport:
    """Bring `new` into service in place of `old`.

    Raises:
        SwapError: `new` was not proved on every replica, or `flip` refused; `old` serves on and
            `new` is unloaded.
    """
    started = time.monotonic()
    try:
        proofs = await fleet.prepare(new)
        difference = check_proofs(new, proofs)
        prepared = time.monotonic()
        flip()
    except Exception as error:  # whatever the fleet met, the serving version must stay as it was
        await _discard(fleet, new)
        if isinstance(error, SwapError):
            raise
        raise SwapError(f"{new.label} could not be brought into service: {error}") from error
    flipped = time.monotonic()
    removed = True
    if old is not None:
        removed = await fleet.retire(old.int_id, DRAIN_TIMEOUT_S)
    return SwapReport(
        adapter=new.name,
        previous=old.label if old else None,
        current=new.label,
        replicas=len(proofs),
        proof_difference=difference,
        prepare_s=prepared - started,
        flip_s=flipped - prepared,
        drain_s=time.monotonic() - flipped,
        removed=removed,
    )


async def _discard(fleet: Fleet, adapter: ServedAdapter) -> None:
    try:
        await fleet.remove(adapter.int_id)
    except Exception:  # a failing clean-up must not hide why the swap failed
        logger.exception("could not unload %s after a failed swap", adapter.label)
