"""Twin of `fastsnn_integer.four_bits.project_naive`: products of counts with 4-bit weights, group by group, by events.

A task is a range of bytes of every weight row. A group of a row becomes a list of pairs of events for the tiles of
`fastsnn_kernel_numba.four_bit_tile`; what is left of a row, and groups that 16 bits do not hold, are added event by
event in 32 bits and then scaled. Rows share a group's weights, which stay in cache.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_events.linear import whole
from fastsnn_integer.four_bits import MIDDLE
from fastsnn_kernel_numba.deterministic import F, U
from fastsnn_kernel_numba.four_bit_tile import LIST, MOST_EVENTS, NARROW, ROOM, _list_count, tiles_of
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat, scratch, workers
from fastsnn_modules.operands import guarded

BYTES = 512  # per task, at most
MOST = 1 << 18  # |c| · 15 · 128 stays far below 2^31
LONGEST = 1 << 10  # inputs of a group
NOTHING = F(-0.0)  # plus x is x, also for both zeros
_add_tiles = tiles_of(halves=False, ahead=False)


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
    """All events of a row in a group, onto fresh sums."""
    kind = low.dtype.type
    for j in range(n):
        low[a + j] = 0
        high[a + j] = 0
    k0, k1, k2, held = first, first, first, 0
    for i in range(first, last):
        if counts[at + i] == 0:
            continue
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


@compile
def _scale_group(sums, a, n, off, weight, d, m, da, out, oo):  # type: ignore[no-untyped-def]
    """One group's part of the outputs: float(sum) · d, or that + float(Σ c) · m; onto what the groups before gave."""
    if len(m):
        low = F(weight)
        for j in range(n):
            out[oo + j] = out[oo + j] + (F(sums[a + j]) * d[da + j] + low * m[da + j])
    else:
        for j in range(n):
            out[oo + j] = out[oo + j] + F(np.int32(sums[a + j]) - off) * d[da + j]


@compile
def _list_row(counts, at, first, last, half, lists, place):  # type: ignore[no-untyped-def]
    """The counts first … last of a row, as a list of pairs at `place`: their sum, and how many pairs.

    -1 pairs where 16 bits or a list do not hold them.
    """
    size, total, events, entries = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for i in range(U(at + first), U(at + last)):
        size += abs(np.int64(counts[i]))
        total += counts[i]
        events += counts[i] != 0
    if size >= ROOM or events > MOST_EVENTS:
        return total, np.int64(-1)
    for i in range(first, last):
        entries = _list_count(lists, place, entries, np.int64(i) * half, np.int64(counts[at + i]))
    return total, (entries + 1) >> 1


@Threaded
def _product_kernel(counts, w, d, m, shape, lists, low32, high32, out, nw):  # type: ignore[no-untyped-def]
    rows, wide, half, tall, group, step = shape
    blocks, groups, minimum = (half + step - 1) // step, (wide + group - 1) // group, len(m) > 0
    weights, scales, minimums, outs = w.ctypes.data, d.ctypes.data, m.ctypes.data, out.ctypes.data
    for worker in prange(nw):
        a, place = U(worker * BYTES), worker * LIST
        pairs_at = lists.ctypes.data + 8 * place
        for block in range(worker * blocks // nw, (worker + 1) * blocks // nw):
            column = block * step
            n = min(step, half - column)
            more = max(0, min(n, tall - half - column))
            for g in range(groups):
                first, last = g * group, min(g * group + group, wide)
                da = g * tall + column
                for row in range(rows):
                    at, oo, done = row * wide, row * tall + column, np.int64(0)
                    if g == 0:
                        for j in range(U(n)):
                            out[U(oo) + j] = NOTHING
                        for j in range(U(more)):
                            out[U(oo + half) + j] = NOTHING
                    total, pairs = _list_row(counts, at, first, last, half, lists, place)
                    if pairs >= 0:
                        done = _add_tiles(
                            weights + column, pairs_at, pairs, pairs_at, scales + 4 * da, minimums + 4 * da, minimum,
                            total, outs + 4 * oo, half, more,
                        )  # fmt: skip
                    if done < n:
                        rest, high = U(n - done), U(max(0, more - done))
                        _add_group(w, counts, at, first, last, half, column + done, low32, high32, a, rest)
                        d0, o0, off = U(da + done), U(oo + done), np.int32(MIDDLE * total)
                        _scale_group(low32, a, rest, off, total, d, m, d0, out, o0)
                        _scale_group(high32, a, high, off, total, d, m, d0 + U(half), out, o0 + U(half))


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
    room = [
        scratch("q4_lists", nw * LIST, np.int64),
        *(scratch(name, nw * BYTES, np.int32) for name in ("low", "high")),
    ]
    arrays = (flat(t.contiguous()) for t in (counts.to(torch.int32), packed, d, m))
    step = min(BYTES, -(-half // (NARROW * nw)) * NARROW)  # so that no worker is left without
    _product_kernel.on(nw, *arrays, (rows, wide, half, tall, group, step), *room, flat(out))
    return out
