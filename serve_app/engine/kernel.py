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


def _up_one(b: Any, low: Any, y: Any, outs: Any) -> None:
    """`y` (all outs,) += `low` (rank,) times `b` (rank or more, all outs), in these outs."""
    rank, (first, last) = len(low), outs
    at = 0
    while at + 8 <= rank:
        k0, k1, k2, k3 = low[at], low[at + 1], low[at + 2], low[at + 3]
        k4, k5, k6, k7 = low[at + 4], low[at + 5], low[at + 6], low[at + 7]
        for o in range(first, last):
            y[o] += (
                k0 * b[at, o]
                + k1 * b[at + 1, o]
                + k2 * b[at + 2, o]
                + k3 * b[at + 3, o]
                + k4 * b[at + 4, o]
                + k5 * b[at + 5, o]
                + k6 * b[at + 6, o]
                + k7 * b[at + 7, o]
            )
        at += 8
    while at < rank:
        k0 = low[at]
        for o in range(first, last):
            y[o] += k0 * b[at, o]
        at += 1


def _up_block(b: Any, low: Any, y: Any, rows: Any, outs: Any) -> None:
    """Four rows of `y` += `low` (4, rank) times `b` (rank or more, all outs), in these outs."""
    rank, (first, last) = low.shape[1], outs
    y0, y1, y2, y3 = y[rows[0]], y[rows[1]], y[rows[2]], y[rows[3]]
    at = 0
    while at + 4 <= rank:
        j0, j1, j2, j3 = low[0, at], low[0, at + 1], low[0, at + 2], low[0, at + 3]
        k0, k1, k2, k3 = low[1, at], low[1, at + 1], low[1, at + 2], low[1, at + 3]
        m0, m1, m2, m3 = low[2, at], low[2, at + 1], low[2, at + 2], low[2, at + 3]
        n0, n1, n2, n3 = low[3, at], low[3, at + 1], low[3, at + 2], low[3, at + 3]
        for o in range(first, last):
            v0, v1, v2, v3 = b[at, o], b[at + 1, o], b[at + 2, o], b[at + 3, o]
            y0[o] += j0 * v0 + j1 * v1 + j2 * v2 + j3 * v3
            y1[o] += k0 * v0 + k1 * v1 + k2 * v2 + k3 * v3
            y2[o] += m0 * v0 + m1 * v1 + m2 * v2 + m3 * v3
            y3[o] += n0 * v0 + n1 * v1 + n2 * v2 + n3 * v3
        at += 4
    while at < rank:
        for o in range(first, last):
            v = b[at, o]
            y0[o] += low[0, at] * v
            y1[o] += low[1, at] * v
            y2[o] += low[2, at] * v
            y3[o] += low[3, at] * v
        at += 1


_down_one = _compiled(_down_one)
_down_block = _compiled(_down_block)
_up_one = _compiled(_up_one)
_up_block = _compiled(_up_block)


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
                _up_block(b[slot], low, y, rows[start:end], span)
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
