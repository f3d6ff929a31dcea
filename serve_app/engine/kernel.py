"""Rows of a batch times the low-rank weights of each one's adapter, compiled for this processor.

Owns the arithmetic and nothing else: which rows, in which order, is decided in
`serve_app.engine.rows`. PyTorch needs several calls for each adapter in a batch; this is one for
all of them, on one thread: Numba's threads are set up in the same library as PyTorch's, and would
change how many of those there are. NumPy arrays of 32 bits throughout; nothing here checks a shape,
and an index too large writes where it may not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

#: Sums may be taken in any order, so that they fit the processor's registers. No more than that:
#: what is infinite or not a number must stay so.
_FASTMATH = {"reassoc", "contract", "nsz"}

#: Rows of one adapter that are multiplied together, its weights read once for all.
BLOCK = 4


def _compiled(function: Callable[..., None]) -> Any:
    try:
        return numba.njit(cache=True, fastmath=_FASTMATH)(function)
    except RuntimeError:  # no folder to keep it in for the next start
        return numba.njit(fastmath=_FASTMATH)(function)


def _down_one(a: Any, x: Any, low: Any) -> None:
    """`low` (rank,) = `a` (rank, in) times `x` (in,)."""
    rank, width = a.shape
    at = 0
    while at + 4 <= rank:
        s0 = s1 = s2 = s3 = np.float32(0)
        for i in range(width):
            v = x[i]
            s0 += a[at, i] * v
            s1 += a[at + 1, i] * v
            s2 += a[at + 2, i] * v
            s3 += a[at + 3, i] * v
        low[at], low[at + 1], low[at + 2], low[at + 3] = s0, s1, s2, s3
        at += 4
    while at < rank:
        s0 = np.float32(0)
        for i in range(width):
            s0 += a[at, i] * x[i]
        low[at] = s0
        at += 1


def _down_block(a: Any, x: Any, rows: Any, low: Any) -> None:
    """`low` (4, rank) = `a` (rank, in) times four rows of `x` (n, in)."""
    rank, width = a.shape
    x0, x1, x2, x3 = x[rows[0]], x[rows[1]], x[rows[2]], x[rows[3]]
    at = 0
    while at + 2 <= rank:
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = np.float32(0)
        for i in range(width):
            v, w = a[at, i], a[at + 1, i]
            s0 += x0[i] * v
            s1 += x1[i] * v
            s2 += x2[i] * v
            s3 += x3[i] * v
            t0 += x0[i] * w
            t1 += x1[i] * w
            t2 += x2[i] * w
            t3 += x3[i] * w
        low[0, at], low[1, at], low[2, at], low[3, at] = s0, s1, s2, s3
        low[0, at + 1], low[1, at + 1], low[2, at + 1], low[3, at + 1] = t0, t1, t2, t3
        at += 2
    if at < rank:
        for i in range(width):
            v = a[at, i]
            if i == 0:
                low[0, at] = low[1, at] = low[2, at] = low[3, at] = np.float32(0)
            low[0, at] += x0[i] * v
            low[1, at] += x1[i] * v
            low[2, at] += x2[i] * v
            low[3, at] += x3[i] * v


# The slices below are for the compiler, which makes vectors of a loop from nothing over contiguous
# rows, and not of one from `first`, which might be negative; nor where more than two rows are
# written to, for which it gives up telling that no row overlaps another. Five to ten times as fast.


def _up_one(b: Any, low: Any, y: Any, outs: Any) -> None:
    """`y` (all outs,) += `low` (rank,) times `b` (rank or more, all outs), in these outs."""
    rank, (first, last) = len(low), outs
    y0 = y[first:last]
    at = 0
    while at + 8 <= rank:
        k0, k1, k2, k3 = low[at], low[at + 1], low[at + 2], low[at + 3]
        k4, k5, k6, k7 = low[at + 4], low[at + 5], low[at + 6], low[at + 7]
        b0, b1 = b[at][first:last], b[at + 1][first:last]
        b2, b3 = b[at + 2][first:last], b[at + 3][first:last]
        b4, b5 = b[at + 4][first:last], b[at + 5][first:last]
        b6, b7 = b[at + 6][first:last], b[at + 7][first:last]
        for o in range(len(y0)):
            y0[o] += (
                k0 * b0[o]
                + k1 * b1[o]
                + k2 * b2[o]
                + k3 * b3[o]
                + k4 * b4[o]
                + k5 * b5[o]
                + k6 * b6[o]
                + k7 * b7[o]
            )
        at += 8
    while at < rank:
        k0, b0 = low[at], b[at][first:last]
        for o in range(len(y0)):
            y0[o] += k0 * b0[o]
        at += 1


def _up_two(b: Any, low: Any, y: Any, rows: Any, outs: Any) -> None:
    """As `_up_one`, for two rows of `y` (n, all outs) and `low` (2, rank)."""
    rank, (first, last) = low.shape[1], outs
    y0, y1 = y[rows[0]][first:last], y[rows[1]][first:last]
    l0, l1 = low[0], low[1]
    at = 0
    while at + 4 <= rank:
        j0, j1, j2, j3 = l0[at], l0[at + 1], l0[at + 2], l0[at + 3]
        k0, k1, k2, k3 = l1[at], l1[at + 1], l1[at + 2], l1[at + 3]
        b0, b1 = b[at][first:last], b[at + 1][first:last]
        b2, b3 = b[at + 2][first:last], b[at + 3][first:last]
        for o in range(len(y0)):
            v0, v1, v2, v3 = b0[o], b1[o], b2[o], b3[o]
            y0[o] += j0 * v0 + j1 * v1 + j2 * v2 + j3 * v3
            y1[o] += k0 * v0 + k1 * v1 + k2 * v2 + k3 * v3
        at += 4
    while at < rank:
        j0, k0, b0 = l0[at], l1[at], b[at][first:last]
        for o in range(len(y0)):
            v0 = b0[o]
            y0[o] += j0 * v0
            y1[o] += k0 * v0
        at += 1


_down_one = _compiled(_down_one)
_down_block = _compiled(_down_block)
_up_one = _compiled(_up_one)
_up_two = _compiled(_up_two)


def _add(y: Any, x: Any, batch: Any, layer: Any) -> None:
    rows, slots, blocks = batch
    a, b, outs, ranks = layer
    most = b.shape[1]
    for block in range(len(blocks) - 1):
        start, end = blocks[block], blocks[block + 1]
        slot = slots[start]
        rank = ranks[slot]
        low = np.empty((BLOCK, rank), np.float32)
        for part in range(len(outs) - 1):
            used = a[slot, part * most : part * most + rank]
            span = outs[part], outs[part + 1]
            if end - start == BLOCK:
                _down_block(used, x, rows[start:end], low)
                _up_two(b[slot], low[:2], y, rows[start : start + 2], span)
                _up_two(b[slot], low[2:], y, rows[start + 2 : end], span)
            else:
                for row in rows[start:end]:
                    _down_one(used, x[row], low[0])
                    _up_one(b[slot], low[0], y[row], span)


#: `add(y, x, (rows, slots, blocks), (a, b, outs, ranks))`: add to rows of `y` (n, all outs), in
#: place, the same rows of `x` (n, in) times their adapters.
#:
#: `rows` are the rows to add to and `slots` the slot of each; `blocks` says where in them each
#: block starts, and at last where they end: a block has rows of one slot, `BLOCK` at most.
#: `a` (slots, parts * rank, in), `b` (slots, rank, all outs); `outs` says where each part's outs
#: start, and at last where they end; `ranks` are those of each slot that are in use.
add = _compiled(_add)
