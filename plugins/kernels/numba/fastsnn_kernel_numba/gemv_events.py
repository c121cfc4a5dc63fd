"""One row of spikes times INT8 weights, the product of a decoded token: everything a call needs, and nothing else.

    out[o] = Σ_e c_e · W[o, i_e]          or float(out[o]) · scale[o] · V

At 90 % silent inputs a product of 45 MB of weights takes 0.1 ms, so a call may not cost 40 µs. The kernel gets
addresses and sizes, whole numbers that need no unpacking, and is one parallel region of three phases: each worker lists
the events of a piece of the inputs, asking for its first weight rows at once; then takes its share of all events (equal
shares, whatever the pieces hold) or of the columns; then adds up a piece of the outputs. A worker that comes late finds
its task done by another. Anything unusual (fractions, sums beyond 32 bits) is left to `gemm_events`.
"""

from __future__ import annotations

import threading
from math import gcd
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.gemm_events import COLUMNS, GROUP, ROOM, U, _accumulate_events, _flush_int16, _prefetch_rows
from fastsnn_kernel_numba.layout import FLOAT, GEMV, INT, INT8, INT16, INT32, packer
from fastsnn_kernel_numba.numba_runtime import Team, Threaded, compile, scratch, workers
from fastsnn_kernel_numba.spin_barrier import LINE, atomic_add, finish_task, wait_for_tasks

KINDS = {torch.float32: 0, torch.int32: 1, torch.int8: 2, torch.int16: 3, torch.int64: 4}  # of counts
LISTED, WEIGHED, ADDED = range(3)  # phases
PHASES = 3
BOUND = 1 << 24  # Σ|c| below this leaves sums in 32 bits: 2^24 · 128 = 2^31
EVENTS, TOTAL = range(2)  # what is known of a piece of the inputs
ASKED, UNUSUAL, HEAD = 0, 1, 3 * LINE  # numbers in front of it all: workers so far, what was found, the arguments
_pack = packer(GEMV)
_own = threading.local()


@compile
def _claim(sync, phase, task, nw):  # type: ignore[no-untyped-def]
    """Is this task of the phase still to be done? Then it is the caller's."""
    return atomic_add(sync, LINE * (2 * PHASES + phase * nw + task), 1) == 0


@compile
def _list_part_events(counts, first, last, index, count):  # type: ignore[no-untyped-def]
    """Events among the inputs first … last, listed from `first` on: how many, and Σ|c| (BOUND where one is unusual)."""
    at = first
    for i in range(U(first), U(last)):  # no branch: which inputs are active is random
        index[at] = np.int32(i)
        at += counts[i] != 0
    total, usual = np.int64(0), True
    for k in range(U(first), U(at)):
        c = counts[U(index[k])]
        small = (c > -BOUND) & (c < BOUND)
        n = np.int32(c) if small else np.int32(0)
        usual &= small & (n == c)
        count[k] = n
        total += abs(n)
    return at - first, total if usual else BOUND


@compile
def _list_events_of(at, kind, wide, first, last, index, count):  # type: ignore[no-untyped-def]
    """`_list_part_events` of counts of any kind."""
    if kind == 0:
        return _list_part_events(view(at, wide, FLOAT), first, last, index, count)
    if kind == 1:
        return _list_part_events(view(at, wide, INT32), first, last, index, count)
    if kind == 2:
        return _list_part_events(view(at, wide, INT8), first, last, index, count)
    if kind == 3:
        return _list_part_events(view(at, wide, INT16), first, last, index, count)
    return _list_part_events(view(at, wide, INT), first, last, index, count)


@compile
def _finish_outputs(first, last, tall, parts, sums, job):  # type: ignore[no-untyped-def]
    """Outputs first … last from the sums of all parts: as they are in 64 bits, or scaled."""
    for part in range(1, parts):
        for o in range(U(first), U(last)):
            sums[o] += sums[U(part * tall) + o]
    if job.scale:
        scale, v, y = view(job.scale, tall, FLOAT), view(job.threshold, 1, FLOAT)[0], view(job.out, tall, FLOAT)
        for o in range(U(first), U(last)):
            y[o] = np.float32(sums[o]) * scale[o] * v
    else:
        out = view(job.out, tall, INT)
        for o in range(U(first), U(last)):
            out[o] = sums[o]


@compile
def _accumulate_inputs(w, index, count, info, job, task, acc, oa, sums):  # type: ignore[no-untyped-def]
    """One task: a part of all events onto a block of outputs."""
    wide, tall, width, parts, nw = job.inputs, job.outputs, job.width, job.parts, job.workers
    blocks = (tall + width - 1) // width
    part, column = task // blocks, task % blocks * width
    n, oo = U(min(width, tall - column)), U(part * tall + column)
    for j in range(n):
        acc[oa + j] = 0
        sums[oo + j] = 0
    events = 0
    for piece in range(nw):
        events += info[LINE * piece + EVENTS]
    begin, end, before, room = events * part // parts, events * (part + 1) // parts, 0, ROOM
    for piece in range(nw):
        here = info[LINE * piece + EVENTS]
        shift = wide * piece // nw - before
        first, last = max(begin, before), min(end, before + here)
        if first < last:
            begin_at, end_at = shift + first, shift + last
            room = _accumulate_events(
                w, index, count, begin_at, end_at, tall, column, n, acc, oa, sums, oo, room, end_at
            )
        before += here
    _flush_int16(acc, oa, sums, oo, n)


@compile
def _row(at):  # type: ignore[no-untyped-def]
    """What one worker does; it ends early where the row is an unusual one."""
    head, job = view(at, HEAD, INT), view(at + 8 * LINE, 1, GEMV)[0]
    worker = atomic_add(head, ASKED, 1)
    wide, tall, width, parts, nw = job.inputs, job.outputs, job.width, job.parts, job.workers
    w = view(job.weight, wide * tall, INT8)
    at += 8 * HEAD
    sync = view(at, LINE * PHASES * (2 + nw), INT)
    at += 8 * LINE * PHASES * (2 + nw)
    info = view(at, LINE * nw, INT)
    at += 8 * LINE * nw
    index = view(at, wide, INT32)
    at += 4 * wide
    count = view(at, wide, INT32)
    at += 4 * wide
    sums = view(at, parts * tall, INT32)
    at += 4 * parts * tall
    acc = view(at, nw * width, INT16)
    for d in range(nw):
        piece = (worker + d) % nw
        if _claim(sync, LISTED, piece, nw):
            first = wide * piece // nw
            n, total = _list_events_of(job.counts, job.kind, wide, first, wide * (piece + 1) // nw, index, count)
            info[LINE * piece + EVENTS], info[LINE * piece + TOTAL] = n, total
            if parts == nw:
                _prefetch_rows(w, index, first, first + min(n, GROUP), tall, 0, 0, width)
            finish_task(sync, LISTED)
    wait_for_tasks(sync, LISTED, nw)
    total = np.int64(0)
    for piece in range(nw):
        total += info[LINE * piece + TOTAL]
    if total >= BOUND:
        head[UNUSUAL] = 1
        return
    tasks = parts * ((tall + width - 1) // width)
    for d in range(nw):
        share = (worker + d) % nw
        if _claim(sync, WEIGHED, share, nw):
            for task in range(share * tasks // nw, (share + 1) * tasks // nw):
                _accumulate_inputs(w, index, count, info, job, task, acc, U(worker * width), sums)
            finish_task(sync, WEIGHED)
    wait_for_tasks(sync, WEIGHED, nw)
    for d in range(nw):
        share = (worker + d) % nw
        if _claim(sync, ADDED, share, nw):
            _finish_outputs(tall * share // nw, tall * (share + 1) // nw, tall, parts, sums, job)


def _enter(at):  # type: ignore[no-untyped-def]
    _row(at)


@Threaded
def _event_rows(at, nw):  # type: ignore[no-untyped-def]
    for _worker in prange(nw):
        _row(at)


_team = Team(_enter, _event_rows)


def product(counts: Tensor, weight: Tensor, scale: Tensor | None = None, threshold: Tensor | None = None) -> Any:
    """``counts [1, D] @ weightᵀ`` in 64 bits, or in float32 times `scale` ``[out]`` and `threshold` ``[1, 1]``.

    None where this is not the way: weights not stored input-major, other types, fractions, sums beyond 32 bits.
    """
    kind, (tall, wide) = KINDS.get(counts.dtype), weight.shape
    if kind is None or weight.stride() != (1, tall) or not wide or not counts.is_contiguous():
        return None
    if scale is None or threshold is None:
        at_scale = at_v = 0
        out = torch.empty(1, tall, dtype=torch.int64)
    else:
        at_scale, at_v, out = scale.data_ptr(), threshold.data_ptr(), torch.empty(1, tall, dtype=torch.float32)
    nw, width = workers(), min(tall, COLUMNS)
    parts = nw // gcd(-(-tall // width), nw)
    head, at = _scratch(wide, tall, width, parts, nw)
    head.fill(0)
    _pack(
        head, 8 * LINE, counts=counts.data_ptr(), kind=kind, weight=weight.data_ptr(), scale=at_scale, threshold=at_v,
        out=out.data_ptr(), inputs=wide, outputs=tall, width=width, parts=parts, workers=nw,
    )  # fmt: skip
    _team(nw, at)
    return None if head[UNUSUAL] else out


def _scratch(wide: int, tall: int, width: int, parts: int, nw: int) -> Any:
    """Working memory that this thread keeps, any content: what is to be set to 0, and the address."""
    need = 64 + 8 * (HEAD + LINE * (PHASES * (2 + nw) + nw)) + 8 * wide + 4 * parts * tall + 2 * nw * width
    kept, teams = getattr(_own, "need", (0, 0))
    if kept < need or teams != nw:  # what is to be set to 0 depends on the workers, whatever the size
        memory = scratch("row", need, np.uint8)
        skip = -memory.ctypes.data % 64
        zero = memory[skip : skip + 8 * (HEAD + LINE * PHASES * (2 + nw))].view(np.int64)
        _own.need, _own.found = (need, nw), (zero, memory.ctypes.data + skip)
    return _own.found
