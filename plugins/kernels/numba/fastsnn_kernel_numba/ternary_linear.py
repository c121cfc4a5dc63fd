"""Twin of `fastsnn_integer.ternary.project_ternary_naive`: products of counts with ternary weights, by events.

A task is a few rows of counts and a range of bytes of every weight row, covered by tiles of
`fastsnn_kernel_numba.ternary_tile`; the last tile of a row ends where the row ends and does again what the one before
has done. The events of some inputs become a list of pairs, whose weights the rows of a task share while they stay in
cache. Workers draw tasks until none is left; the kernel gets addresses and sizes, as `gemv_events` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.nn import functional as pad_functions

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.gemv_events import BOUND, KINDS, U, _list_events_of
from fastsnn_kernel_numba.layout import FLOAT, INT, INT32, TERNARY, packer
from fastsnn_kernel_numba.numba_runtime import Team, Threaded, compile, scratch, workers
from fastsnn_kernel_numba.spin_barrier import LINE, atomic_add
from fastsnn_kernel_numba.ternary_events import PAIR_LIST, SUMS, _add_tiles_of_events, _tile_column
from fastsnn_kernel_numba.ternary_tile import QUARTERS, TERNARY_TILE
from fastsnn_modules.operands import guarded

INPUTS, ROWS, TILES = 128, 8, 32  # of which a task has the weights in use, the sums, and the columns
LARGEST_SUM = 1 << 29  # Σ|c| below this leaves Σ c u in 32 bits
CAME, DRAWN, ODD, JOB, MEMORY = (LINE * i for i in (0, 1, 2, 3, 5))  # places of what a call begins with
_pack = packer(TERNARY)


@compile
def _scale_ternary(sums, a, total, job, column, skip, row):  # type: ignore[no-untyped-def]
    """float(sum) · scale of a tile's outputs from its lane `skip` on."""
    scale, out = view(job.scale, job.outputs, FLOAT), view(job.out + 4 * row * job.outputs, job.outputs, FLOAT)
    off = np.int32(total)
    for q in range(QUARTERS):
        n = min(TERNARY_TILE, job.real - column, job.outputs - q * job.real - column)
        o, s = U(q * job.real + column), U(a + q * TERNARY_TILE)
        for j in range(U(skip), U(max(n, skip))):
            out[o + j] = np.float32(sums[s + j] - off) * scale[o + j]


@compile
def _ternary_task(job, column, n, first_row, rows, lists, index, count, sums, totals):  # type: ignore[no-untyped-def]
    """Bytes column … column + n of the rows of counts from `first_row` on. Is every count a usual one?"""
    wide, stride, tiles = job.inputs, job.stride, (n + TERNARY_TILE - 1) // TERNARY_TILE
    to, usual = sums.ctypes.data, True
    for j in range(U(rows * tiles * SUMS)):
        sums[j] = 0
    for r in range(2 * rows):
        totals[r] = 0
    some = INPUTS if rows > 1 else wide
    for first in range(0, wide, some):
        last = min(first + some, wide)
        for r in range(rows):
            at = job.counts + (first_row + r) * wide * job.size
            events, size = _list_events_of(at, job.kind, wide, first, last, index, count)
            totals[2 * r] += size
            usual &= (size < BOUND) & (totals[2 * r] < LARGEST_SUM)
            if not usual:
                return False
            for k in range(U(first), U(first + events)):
                totals[2 * r + 1] += count[k]
            own = to + 4 * SUMS * r * tiles
            _add_tiles_of_events(job.weight, index, count, first, first + events, stride, column, tiles, lists, own)
    for r in range(rows):
        for t in range(tiles):
            c = _tile_column(column, t, stride)
            skip = column + t * TERNARY_TILE - c
            _scale_ternary(sums, (r * tiles + t) * SUMS, totals[2 * r + 1], job, c, skip, first_row + r)
    return usual


@compile
def _ternary_worker(at):  # type: ignore[no-untyped-def]
    """What one worker does."""
    head, job = view(at, MEMORY, INT), view(at + 8 * JOB, 1, TERNARY)[0]
    worker = atomic_add(head, CAME, 1)
    at += 8 * MEMORY + worker * job.memory
    lists = at
    at += 16 * PAIR_LIST
    totals = view(at, 2 * ROWS, INT)
    at += 16 * ROWS
    sums = view(at, ROWS * TILES * SUMS, INT32)
    at += 4 * ROWS * TILES * SUMS
    index = view(at, job.inputs, INT32)
    count = view(at + 4 * job.inputs, job.inputs, INT32)
    blocks = (job.stride + job.step - 1) // job.step
    tasks = blocks * ((job.rows + ROWS - 1) // ROWS)
    task = atomic_add(head, DRAWN, 1)
    while task < tasks:
        column, row = task % blocks * job.step, task // blocks * ROWS
        n, rows = min(job.step, job.stride - column), min(ROWS, job.rows - row)
        if not _ternary_task(job, column, n, row, rows, lists, index, count, sums, totals):
            head[ODD] = 1
        task = atomic_add(head, DRAWN, 1)


def _ternary_enter(at):  # type: ignore[no-untyped-def]
    _ternary_worker(at)


@Threaded
def _ternary_threads(at, nw):  # type: ignore[no-untyped-def]
    for _worker in prange(nw):
        _ternary_worker(at)


_ternary_team = Team(_ternary_enter, _ternary_threads)


@guarded("count_project_ternary")
def product_of_ternary(counts: Tensor, packed: Tensor, scale: Tensor) -> Any:
    """Twin of `fastsnn_integer.ternary.project_ternary_naive`, which fractions and sums beyond 32 bits are left to."""
    (rows, wide), stride, tall, nw = counts.shape, packed.shape[1], len(scale), workers()
    if not counts.numel() or not tall or counts.dtype not in KINDS:
        return NotImplemented
    real = stride
    if stride < TERNARY_TILE:
        packed, stride = pad_functions.pad(packed, (0, TERNARY_TILE - stride)), TERNARY_TILE
    counts, packed, scale = counts.detach().contiguous(), packed.contiguous(), scale.detach().contiguous()
    out = torch.empty(rows, tall)
    step = TERNARY_TILE * min(TILES, -(-stride // (TERNARY_TILE * nw)))  # so that no worker is left without
    own = -(-(16 * PAIR_LIST + 16 * ROWS + 4 * ROWS * TILES * SUMS + 8 * wide) // 64) * 64
    memory = scratch("ternary", 64 + 8 * MEMORY + nw * own, np.uint8)
    skip = -memory.ctypes.data % 64
    head = memory[skip : skip + 8 * MEMORY].view(np.int64)
    head.fill(0)
    _pack(
        head, 8 * JOB, counts=counts.data_ptr(), kind=KINDS[counts.dtype], size=counts.element_size(),
        weight=packed.data_ptr(), scale=scale.data_ptr(), out=out.data_ptr(), rows=rows, inputs=wide, outputs=tall,
        stride=stride, real=real, step=step, memory=own,
    )  # fmt: skip
    _ternary_team(nw, memory.ctypes.data + skip)
    return NotImplemented if head[ODD] else out
