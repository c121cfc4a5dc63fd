"""The INT8 product of many rows whose counts may be large: tiles of `fastsnn_kernel_numba.dense_pairs`, or torch's.

    out[n, o] = Σ_i c[n, i] · w[o, i]      weights stored input-major

A task is `GROUP` columns; `ROWS` rows at a time go over the packed weights of all inputs: their sums stay in L1.
Counts that 16 bits do not hold are events: their weight rows are added at the end. Where torch has a fast product
(VNNI) it multiplies the others of many rows in the tiles' place. Everything is exact.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.dense_pairs import (
    CHUNK,
    GROUP,
    PANEL,
    PIECE,
    _multiply_piece,
    _pack_piece,
    _split_counts,
)
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import INT8
from fastsnn_kernel_numba.machine import AVX2
from fastsnn_kernel_numba.numba_runtime import Threaded, flat, scratch, workers

ROWS = 64  # rows that go over a group of columns together
MOST_INPUTS = 1 << 16  # 255 · 127 · 2^16 < 2^31
MOST_SIZE = 1 << 24  # Σ|c| of a row below which its sums fit 32 bits
MOST_LEFT = 0.1  # share of the counts that may be left to the events; with more, another way is faster
WIDTH = GROUP + 16  # sums of a row, and a cache line


@Threaded
def _split_rows(counts, rows, wide, padded, whole, narrow, index, count, left, total, state, nw):  # type: ignore[no-untyped-def]
    """Every row's counts for the tiles, its events, how many they are, and the sum of the rest.

    `state`: of every worker, how many counts are not finite, not whole or beyond 32 bits, and the largest Σ|c|.
    """
    for worker in prange(nw):
        own, found, most = worker * wide, 0, np.int64(0)
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            at, to, size = U(row * wide), row * padded, np.int64(0)
            for i in range(U(wide)):
                c = np.int32(counts[at + i])
                whole[U(own) + i] = c
                found += c != counts[at + i]
            for i in range(U(wide)):
                size += abs(np.int64(whole[U(own) + i]))
            most = max(most, size)
            left[row] = 0
            if size < MOST_SIZE and not found:
                first, last = row * wide, (row + 1) * wide
                left[row], total[row] = _split_counts(
                    whole[own : own + wide], wide, narrow[to : to + padded], index[first:last], count[first:last]
                )
        state[worker, 0], state[worker, 1] = found, most


@Threaded
def _multiply_tiles(shape, weight, address, narrow_at, events, panels_at, sums, sums_at, places, out, nw):  # type: ignore[no-untyped-def]
    """All tasks; each worker has a panel, sums of its rows and a spare, and their addresses of its own."""
    rows, wide, tall, padded, stride = shape
    index, count, left, total = events
    groups = (tall + GROUP - 1) // GROUP
    for worker in prange(nw):
        own, panel_at = worker * (ROWS + 1) * WIDTH, panels_at + worker * PANEL
        to, spare, panel = sums_at + 4 * own, sums_at + 4 * (own + ROWS * WIDTH), view(panel_at, PANEL, INT8)
        at = places[worker]
        for group in range(worker * groups // nw, (worker + 1) * groups // nw):
            column = group * GROUP
            n = min(GROUP, tall - column)
            for low in range(0, rows, ROWS):
                m = min(ROWS, rows - low)
                for i in range(U(m * WIDTH)):
                    sums[U(own) + i] = 0
                for r in range(m):
                    at[r] = narrow_at + (low + r) * padded
                for first in range(0, wide, PIECE):
                    chunks = _pack_piece(weight, address, first, wide, stride, column, n, panel, panel_at)
                    soon = first + PIECE
                    ahead, lines = soon * stride + column, max(0, min(wide - soon, PIECE))
                    _multiply_piece(panel_at, n, chunks, at, first, m, to, WIDTH, spare, weight, ahead, lines, stride)
                for r in range(m):
                    row, a = low + r, U(own + r * WIDTH)
                    o, off = U(row * tall + column), np.int32(128 * total[row])
                    for j in range(U(n)):
                        out[o + j] = sums[a + j] - off
                    for e in range(row * wide, row * wide + left[row]):
                        c, w = np.int32(count[e]), U(index[e] * stride + column)
                        for j in range(U(n)):
                            out[o + j] += c * np.int32(weight[w + j])


@Threaded
def _add_left(rows, wide, tall, stride, index, count, left, weight, out, nw):  # type: ignore[no-untyped-def]
    """The events of every row onto its sums."""
    for worker in prange(nw):
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            o = U(row * tall)
            for e in range(row * wide, row * wide + left[row]):
                c, w = np.int32(count[e]), U(index[e] * stride)
                for j in range(U(tall)):
                    out[o + j] += c * np.int32(weight[w + j])


def tile_gemm(counts: Tensor, weight: Tensor, by_torch: bool = False) -> Tensor | None:
    """``counts [N, K] @ weight [out, K]ᵀ`` in 32 bits; with `by_torch` torch multiplies what has 8 bits.

    None where the tiles are not the way: no AVX2, weights that are not input-major, too many inputs, sums or counts
    beyond 32 bits, counts that are not whole, or too many that 16 bits do not hold.
    """
    (rows, wide), tall, nw = counts.shape, len(weight), workers()
    if not AVX2 or wide > MOST_INPUTS or weight.stride(0) != 1 or not rows or not tall:
        return None
    stride, padded = weight.stride(1) if wide > 1 else tall, -(-wide // CHUNK) * CHUNK
    whole, narrow = scratch("whole", nw * wide, np.int32), scratch("narrow", rows * padded, np.int8)
    index, count = scratch("index", rows * wide, np.int32), scratch("count", rows * wide, np.int32)
    left, total = scratch("left", rows, np.int64), scratch("total", rows, np.int64)
    state = np.zeros((nw, 2), np.int64)
    _split_rows.on(nw, flat(counts.contiguous()), rows, wide, padded, whole, narrow, index, count, left, total, state)
    if state[:, 0].any() or state[:, 1].max() >= MOST_SIZE or left[:rows].sum() > MOST_LEFT * rows * wide:
        return None
    flat_weight = weight.as_strided(((wide - 1) * stride + tall,), (1,)).numpy()
    if by_torch:
        low = torch.from_numpy(narrow[: rows * padded]).view(rows, padded)[:, :wide].contiguous()
        out = torch._int_mm(low, weight.T)
        _add_left(rows, wide, tall, stride, index, count, left, flat_weight, flat(out))
        return out
    panels, sums = scratch("panels", nw * PANEL, np.int8), scratch("tile_sums", nw * (ROWS + 1) * WIDTH, np.int32)
    places = np.zeros((nw, ROWS), np.int64)
    out = torch.empty(rows, tall, dtype=torch.int32)
    _multiply_tiles.on(
        nw,
        (rows, wide, tall, padded, stride), flat_weight, flat_weight.ctypes.data, narrow.ctypes.data,
        (index, count, left, total), panels.ctypes.data, sums, sums.ctypes.data, places, flat(out),
    )  # fmt: skip
    return out
