"""Twin of `fastsnn_integer.four_bits.project_naive`: products of counts with 4-bit weights, group by group, by events.

A task is a range of bytes of every weight row: an event reads one contiguous piece and adds it, times its count, to the
sums of both nibbles, in 16 bits where the group's counts allow (15 · Σ|c| < 2^15), else in 32. Then the group is scaled
once. Rows share a group's weights, which stay in cache.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_events.linear import whole
from fastsnn_integer.four_bits import MIDDLE
from fastsnn_kernel_numba.deterministic import F, U
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat, scratch, workers
from fastsnn_modules.operands import guarded

BYTES = 512  # per task: 2 KiB of 16-bit sums
ROOM = (1 << 15) // 16  # Σ|c| of a group that 16 bits hold
MOST = 1 << 18  # |c| · 15 · 128 stays far below 2^31
LONGEST = 1 << 10  # inputs of a group


@compile
def _add_4(w, o0, o1, o2, o3, c0, c1, c2, c3, low, high, a, n):  # type: ignore[no-untyped-def]
    """Four weight rows, each times its count, onto the sums of low and high nibbles."""
    four, mask = np.uint8(4), np.uint8(15)
    for j in range(n):
        s = c0 * (w[o0 + j] & mask) + c1 * (w[o1 + j] & mask) + c2 * (w[o2 + j] & mask) + c3 * (w[o3 + j] & mask)
        low[a + j] = low.dtype.type(low[a + j] + s)
    for j in range(n):
        s = c0 * (w[o0 + j] >> four) + c1 * (w[o1 + j] >> four) + c2 * (w[o2 + j] >> four) + c3 * (w[o3 + j] >> four)
        high[a + j] = high.dtype.type(high[a + j] + s)


@compile
def _add_group(w, counts, at, first, last, half, column, low, high, a, n):  # type: ignore[no-untyped-def]
    """All events of a row in a group; the sum of their counts."""
    kind, total = low.dtype.type, np.int64(0)
    for j in range(n):
        low[a + j] = 0
        high[a + j] = 0
    k0, k1, k2, held = first, first, first, 0
    for i in range(first, last):
        if counts[at + i] == 0:
            continue
        total += counts[at + i]
        if held < 3:
            k0, k1, k2 = (i, k1, k2) if held == 0 else (k0, i, k2) if held == 1 else (k0, k1, i)
            held += 1
            continue
        _add_4(
            w, U(k0 * half + column), U(k1 * half + column), U(k2 * half + column), U(i * half + column),
            kind(counts[at + k0]), kind(counts[at + k1]), kind(counts[at + k2]), kind(counts[at + i]), low, high, a, n,
        )  # fmt: skip
        held = 0
    if held:
        _add_4(
            w, U(k0 * half + column), U(k1 * half + column), U(k2 * half + column), U(k0 * half + column),
            kind(counts[at + k0]), kind(counts[at + k1] if held > 1 else 0), kind(counts[at + k2] if held > 2 else 0),
            kind(0), low, high, a, n,
        )  # fmt: skip
    return total


@compile
def _scale_group(sums, a, n, off, weight, d, m, da, out, oo, fresh):  # type: ignore[no-untyped-def]
    """One group's part of the outputs: float(sum) · d, or that + float(Σ c) · m; onto what the groups before gave."""
    if len(m):
        low = F(weight)
        for j in range(n):
            part = F(sums[a + j]) * d[da + j] + low * m[da + j]
            out[oo + j] = part if fresh else out[oo + j] + part
    else:
        for j in range(n):
            part = F(np.int32(sums[a + j]) - off) * d[da + j]
            out[oo + j] = part if fresh else out[oo + j] + part


@Threaded
def _product_kernel(counts, w, d, m, shape, low16, high16, low32, high32, out, nw):  # type: ignore[no-untyped-def]
    rows, wide, half, tall, group = shape
    blocks, groups = (half + BYTES - 1) // BYTES, (wide + group - 1) // group
    for worker in prange(nw):
        a = U(worker * BYTES)
        for block in range(worker * blocks // nw, (worker + 1) * blocks // nw):
            column = block * BYTES
            n = U(min(BYTES, half - column))
            more = U(max(0, min(np.int64(n), tall - half - column)))
            for g in range(groups):
                first, last = g * group, min(g * group + group, wide)
                da = U(g * tall + column)
                for row in range(rows):
                    at, size, oo = row * wide, np.int64(0), U(row * tall + column)
                    for i in range(U(at + first), U(at + last)):
                        size += abs(np.int64(counts[i]))
                    if size < ROOM:
                        total = _add_group(w, counts, at, first, last, half, column, low16, high16, a, n)
                        off = np.int32(MIDDLE * total)
                        _scale_group(low16, a, n, off, total, d, m, da, out, oo, g == 0)
                        _scale_group(high16, a, more, off, total, d, m, da + U(half), out, oo + U(half), g == 0)
                    else:
                        total = _add_group(w, counts, at, first, last, half, column, low32, high32, a, n)
                        off = np.int32(MIDDLE * total)
                        _scale_group(low32, a, n, off, total, d, m, da, out, oo, g == 0)
                        _scale_group(high32, a, more, off, total, d, m, da + U(half), out, oo + U(half), g == 0)


@guarded("count_project_q4")
def product_of_four_bits(counts: Tensor, packed: Tensor, d: Tensor, m: Tensor, group: int) -> Tensor:
    """Twin of `fastsnn_integer.four_bits.project_naive`; counts from `MOST` on are left to it."""
    (rows, wide), half, tall, nw = counts.shape, packed.shape[1], d.shape[1], workers()
    if not counts.numel() or not tall or group > LONGEST:
        return NotImplemented
    counts = whole(counts, "counts")
    if float(counts.abs().max()) >= MOST:
        return NotImplemented
    out = torch.empty(rows, tall)
    room = [scratch(name, nw * BYTES, kind) for name, kind in
            (("q4_low", np.int16), ("q4_high", np.int16), ("q4_low", np.int32), ("q4_high", np.int32))]  # fmt: skip
    arrays = (flat(t.contiguous()) for t in (counts.to(torch.int32), packed, d, m))
    _product_kernel(*arrays, (rows, wide, half, tall, group), *room, flat(out))
    return out
