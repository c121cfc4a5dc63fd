"""Integer products of few rows of spikes with INT8 weights, reading only the weight rows that spiked.

    out[n] = Σ_e c_e · W[:, i_e]      events e = (i, c) of row n, weights stored input-major: W[:, i] is contiguous

One token is bound by the bytes it reads, so everything serves the memory stream: eight rows are added per pass, whose
first lines are prefetched while the eight before them are added (hardware prefetchers stop at every page, and a row is
a page); workers take different inputs, so that each reads whole rows. Sums are kept in 16 bits as long as
Σ|c| · 128 < 2^15 allows, then widened: 32 lanes per instruction, and exact. With several rows, inputs are taken in
blocks that stay in cache, so that weights are read once for all of them.
"""

from __future__ import annotations

from math import gcd

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_events.linear import too_large, whole
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat, prefetch, scratch, workers

U = np.uint64  # unsigned indices: no wrap-around test, so LLVM vectorises
TYPES = (torch.float32, torch.int32, torch.int64)  # of counts; each takes seconds to compile, so no more of them
DONE, FRACTIONS, MANY, WIDE = range(4)  # what `_event_gemm` found
SHARED = 4  # parts from which the adding up is shared out, too
GROUP = 8  # weight rows added per pass
ROOM = 255  # Σ|c| that 16 bits hold: 255 · 128 < 2^15
COLUMNS = 4096  # outputs per task: 8 KiB of 16-bit sums stay in L1
SATURATED, SMALLEST, LARGEST = 1 << 40, -(1 << 63), (1 << 63) - 1  # |c| enters the bound on sums up to the first
PAIR = 127  # counts of which two products fit 16 bits
TILE = 256  # columns of the next rows that are asked for while as many of these are added
BLOCK = 1 << 18  # bytes of weights that several rows share


@compile
def _list_batch_events(counts, rows, wide, index, count, starts):  # type: ignore[no-untyped-def]
    """Lists the active inputs row after row. Returns Σ|c| of the largest row, max|c|, and whether all are whole."""
    at, total, most, whole = 0, 0, 0, True
    for n in range(rows):
        starts[n], first, size = at, U(n * wide), 0
        for i in range(U(wide)):
            c = np.int64(counts[first + i])
            whole &= c == counts[first + i]
            a = abs(c) if c != SMALLEST else LARGEST
            most = max(most, a)
            size += min(a, SATURATED)
        for i in range(U(wide)):  # no branch: which inputs are active is random
            index[at] = i
            at += counts[first + i] != 0
        for k in range(starts[n], at):
            count[k] = counts[first + U(index[k])]
        total = max(total, size)
    starts[rows] = at
    return total, most, whole


@compile
def _add_8_rows(w, places, counts, acc, oa, n):  # type: ignore[no-untyped-def]
    """Eight weight rows, each times its count, onto 16-bit sums (no step can leave 16 bits: see ROOM)."""
    o0, o1, o2, o3, o4, o5, o6, o7 = places
    c0, c1, c2, c3, c4, c5, c6, c7 = counts
    for j in range(n):
        s = c0 * w[o0 + j] + c1 * w[o1 + j] + c2 * w[o2 + j] + c3 * w[o3 + j]
        s += c4 * w[o4 + j] + c5 * w[o5 + j] + c6 * w[o6 + j] + c7 * w[o7 + j]
        acc[oa + j] = np.int16(acc[oa + j] + s)


@compile
def _add_4_rows(w, places, counts, out, oo, n):  # type: ignore[no-untyped-def]
    """Four weight rows with counts up to 127, onto the wide sums: two products fit 16 bits (2 · 127 · 128 < 2^15)."""
    o0, o1, o2, o3 = places
    c0, c1, c2, c3 = counts
    for j in range(n):
        a, b = np.int16(c0 * w[o0 + j] + c1 * w[o1 + j]), np.int16(c2 * w[o2 + j] + c3 * w[o3 + j])
        out[oo + j] += a + b


@compile
def _add_wide(w, o, c, out, oo, n):  # type: ignore[no-untyped-def]
    """One row whose count is too large for 16 bits, straight onto the wide sums."""
    for j in range(n):
        out[oo + j] += c * w[o + j]


@compile
def _flush_int16(acc, oa, out, oo, n):  # type: ignore[no-untyped-def]
    for j in range(n):
        out[oo + j] += acc[oa + j]
        acc[oa + j] = 0


@compile
def _prefetch_rows(w, index, first, last, tall, column, begin, end):  # type: ignore[no-untyped-def]
    """Prefetch the columns begin … end of the events first … last."""
    for q in range(first, last):
        for line in range(index[q] * tall + column + begin, index[q] * tall + column + end, 64):
            prefetch(w, line)


@compile
def _accumulate_events(w, index, count, k, end, tall, column, n, acc, oa, out, oo, room, soon):  # type: ignore[no-untyped-def]
    """Events k … end of one row onto the outputs column … column + n; `room` is what the 16-bit sums still hold.

    Weight rows of the events up to `soon` are asked for in advance.
    """
    while k < end:
        m, size, most = min(GROUP, end - k), 0, 0
        for q in range(m):
            size += abs(count[k + q])
            most = max(most, abs(count[k + q]))
        ahead, beyond = k + m, min(k + m + GROUP, soon)
        if size > ROOM and most > PAIR:
            for q in range(m):
                _add_wide(w, U(index[k + q] * tall + column), out.dtype.type(count[k + q]), out, oo, n)
            k += m
            continue
        if size > room and size <= ROOM:
            _flush_int16(acc, oa, out, oo, n)
            room = ROOM
        a, o0, c0 = k + m - 1, U(index[k] * tall + column), np.int16(count[k])  # past the end: row a, 0 times
        o1, c1 = U(index[min(k + 1, a)] * tall + column), np.int16(count[k + 1] if m > 1 else 0)
        o2, c2 = U(index[min(k + 2, a)] * tall + column), np.int16(count[k + 2] if m > 2 else 0)
        o3, c3 = U(index[min(k + 3, a)] * tall + column), np.int16(count[k + 3] if m > 3 else 0)
        o4, c4 = U(index[min(k + 4, a)] * tall + column), np.int16(count[k + 4] if m > 4 else 0)
        o5, c5 = U(index[min(k + 5, a)] * tall + column), np.int16(count[k + 5] if m > 5 else 0)
        o6, c6 = U(index[min(k + 6, a)] * tall + column), np.int16(count[k + 6] if m > 6 else 0)
        o7, c7 = U(index[min(k + 7, a)] * tall + column), np.int16(count[k + 7] if m > 7 else 0)
        at, b = 0, U(0)
        while at < n:
            step = min(TILE, np.int64(n) - at)
            _prefetch_rows(w, index, ahead, beyond, tall, column, at, at + step)
            b = U(at)
            if size <= ROOM:
                places = (o0 + b, o1 + b, o2 + b, o3 + b, o4 + b, o5 + b, o6 + b, o7 + b)
                _add_8_rows(w, places, (c0, c1, c2, c3, c4, c5, c6, c7), acc, oa + b, U(step))
            else:
                _add_4_rows(w, (o0 + b, o1 + b, o2 + b, o3 + b), (c0, c1, c2, c3), out, oo + b, U(step))
                _add_4_rows(w, (o4 + b, o5 + b, o6 + b, o7 + b), (c4, c5, c6, c7), out, oo + b, U(step))
            at += step
        if size <= ROOM:
            room -= size
        k += m
    return room


@compile
def _lower_bound(index, low, high, value):  # type: ignore[no-untyped-def]
    """Where in ``index[low:high]``, which rises, `value` would go."""
    while low < high:
        middle = (low + high) // 2
        if index[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@compile
def _add_parts(sums, parts, size, first, last, out):  # type: ignore[no-untyped-def]
    """The sums of all parts, in 64 bits."""
    for o in range(first, last):
        out[o] = sums[o]
    for part in range(1, parts):
        for o in range(first, last):
            out[o] += sums[U(part) * size + o]


@compile
def _part_begin(index, starts, rows, wide, part, parts):  # type: ignore[no-untyped-def]
    """First input of a part: equal shares of the events of one row, or of the inputs of several."""
    if part == 0 or part == parts or rows > 1:
        return wide * part // parts
    return index[starts[1] * part // parts] if starts[1] else 0


@Threaded
def _event_gemm(counts, w, shape, limit, bits, events, own, sums, out, most, nw):  # type: ignore[no-untyped-def]
    """Lists the events, and adds their weight rows where that is possible and worth it; says what was found.

    A task is a part of the inputs and a block of outputs; the parts are added up at the end. `events` are (index,
    count, where each row's begin); each worker has of its own the 16-bit sums, what they still hold, and its place.
    """
    (index, count, starts), (acc, room, at) = events, own
    rows, wide, tall, width, block, parts, stride = shape
    total, most[0], whole = _list_batch_events(counts, rows, wide, index, count, starts)
    if not whole:
        return FRACTIONS
    if starts[rows] >= limit:
        return MANY
    if total >> (bits - 7) or (most[0] > SATURATED and float(most[0]) * wide >= 2.0 ** (bits - 7)):
        return WIDE
    blocks = (tall + width - 1) // width
    tasks = parts * blocks
    for worker in prange(nw):
        for task in range(worker * tasks // nw, (worker + 1) * tasks // nw):
            part, column = task // blocks, task % blocks * width
            n = U(min(width, tall - column))
            start = _part_begin(index, starts, rows, wide, part, parts)
            stop = _part_begin(index, starts, rows, wide, part + 1, parts)
            for row in range(rows):
                mine = worker * rows + row
                oa, oo = U(mine * width), U((part * rows + row) * tall + column)
                for j in range(n):
                    acc[oa + j] = 0
                    sums[oo + j] = 0
                room[mine], at[mine] = ROOM, _lower_bound(index, starts[row], starts[row + 1], start)
            for low in range(start, stop, block):
                for row in range(rows):
                    mine = worker * rows + row
                    oa, oo = U(mine * width), U((part * rows + row) * tall + column)
                    k, end = at[mine], _lower_bound(index, at[mine], starts[row + 1], min(low + block, stop))
                    left = room[mine]
                    room[mine] = _accumulate_events(
                        w, index, count, k, end, stride, column, n, acc, oa, sums, oo, left, end
                    )
                    at[mine] = end
            for row in range(rows):
                mine = worker * rows + row
                _flush_int16(acc, U(mine * width), sums, U((part * rows + row) * tall + column), n)
    if parts > SHARED:
        for worker in prange(nw):
            first, last = worker * rows * tall // nw, (worker + 1) * rows * tall // nw
            _add_parts(sums, parts, U(rows * tall), U(first), U(last), out)
    else:
        _add_parts(sums, parts, U(rows * tall), U(0), U(rows * tall), out)
    return DONE


def event_gemm(counts: Tensor, weight: Tensor, limit: float) -> Tensor | None:
    """``[N, out]`` of counts ``[N, D]`` with an input-major `weight` ``[out, D]``; None from `limit` events on."""
    if counts.dtype not in TYPES:
        counts = whole(counts, "counts").to(torch.int64 if counts.is_floating_point() else torch.int32)
    (rows, wide), tall, nw = counts.shape, len(weight), workers()
    width = min(tall, COLUMNS)
    parts = nw // gcd(-(-tall // width), nw)
    stride = weight.stride(1) if wide > 1 else tall  # more than `tall` where matrices lie side by side
    flat_weight = weight.as_strided(((wide - 1) * stride + tall,), (1,)).numpy()
    shape = (rows, wide, tall, width, wide if rows == 1 else max(GROUP, BLOCK // width), parts, stride)
    out = torch.empty(rows, tall, dtype=torch.int64)
    most = scratch("most", 1, np.int64)
    events = (
        scratch("index", rows * wide + 1, np.int64),
        scratch("count", rows * wide + 1, np.int64),
        scratch("starts", rows + 1, np.int64),
    )
    own = (
        scratch("acc", nw * rows * width, np.int16),
        scratch("room", nw * rows, np.int64),
        scratch("at", nw * rows, np.int64),
    )
    for bits, kind in ((31, np.int32), (63, np.int64)):
        found = _event_gemm.on(
            nw,
            flat(counts.contiguous()), flat_weight, shape, int(min(limit, rows * wide + 1)), bits,
            events, own, scratch("sums", parts * rows * tall, kind), flat(out), most,
        )  # fmt: skip
        if found != WIDE:
            break
    if found == FRACTIONS:
        raise FastSNNError("counts must be finite whole numbers for integer arithmetic")
    if found == WIDE:
        raise too_large(float(most[0]), 128.0)
    return None if found == MANY else out
