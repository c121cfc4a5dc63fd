"""4-bit weights in the fused step: products of a row's events group by group, gates, and rows of the embedding.

The arithmetic is `fastsnn_integer.four_bits`: exact sums per group, then the scale and the minimum, groups one after
the other. A task is a range of bytes of every weight row. Whole tiles of it are `fastsnn_kernel_numba.four_bit_tile`,
by lists of pairs of events; what is left of a row, and groups that 16 bits do not hold, are added event by event in
64 bits. Scales stay float16 in memory and are widened as they are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastsnn_integer.four_bits import MIDDLE
from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.deterministic import ZERO, F, _as_float
from fastsnn_kernel_numba.four_bit_tile import HALVES, LIST, MOST_EVENTS, ROOM, _list_count, tiles_of
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import GATE_NOT_FINITE, INT16, UINT8
from fastsnn_kernel_numba.numba_runtime import compile

GROUP = 8  # weight rows added per pass
I = np.int64
MOST_BYTES = 1024  # of a task
INT32_RANGE = F(2147483648.0)
SHIFT, SIGN, REST = np.int32(13), np.int32(-(1 << 31)), np.int32(0x7FFF)
LIFT = F(2.0**112)  # 2^(127 - 15): between the exponents of float16 and float32
_add_tiles = tiles_of(halves=True, ahead=True)


@intrinsic
def _load_half(typing: Any, array: Any, index: Any) -> Any:
    """``array[index]``, 16 bits that are a float16, as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), ir.HalfType().as_pointer())
        return builder.fpext(builder.load(place, align=2), ir.FloatType())

    return types.float32(array, index), generate


if HALVES:

    @compile
    def _half(x, i):  # type: ignore[no-untyped-def]
        """The float16 at a place, by the machine's own conversion."""
        return _load_half(x, i)

else:

    @compile
    def _half(x, i):  # type: ignore[no-untyped-def]
        """The float16 at a place, by its bits; finite."""
        bits = np.int32(x[i])
        size = _as_float((bits & REST) << SHIFT) * LIFT
        return -size if bits < 0 else size


@compile
def _add_8(w, places, counts, high, acc, a, n):  # type: ignore[no-untyped-def]
    """Eight weight rows, each times its count, onto the sums of the low or of the high nibbles."""
    o0, o1, o2, o3, o4, o5, o6, o7 = places
    c0, c1, c2, c3, c4, c5, c6, c7 = counts
    mask, by = np.uint8(15), np.uint8(4 if high else 0)
    for j in range(n):
        s = c0 * ((w[o0 + j] >> by) & mask) + c1 * ((w[o1 + j] >> by) & mask) + c2 * ((w[o2 + j] >> by) & mask)
        s += c3 * ((w[o3 + j] >> by) & mask) + c4 * ((w[o4 + j] >> by) & mask) + c5 * ((w[o5 + j] >> by) & mask)
        s += c6 * ((w[o6 + j] >> by) & mask) + c7 * ((w[o7 + j] >> by) & mask)
        acc[a + j] = acc[a + j] + s


@compile
def _add_events(weight, index, count, k, end, half, column, n, acc, a):  # type: ignore[no-untyped-def]
    """Events k … end, of one group, onto the 64-bit sums of low nibbles at `a` and of high ones `n` behind."""
    for j in range(n + n):
        acc[a + j] = 0
    while k < end:
        last, m = end - 1, end - k
        places = (
            U(index[k] * half + column), U(index[min(k + 1, last)] * half + column),
            U(index[min(k + 2, last)] * half + column), U(index[min(k + 3, last)] * half + column),
            U(index[min(k + 4, last)] * half + column), U(index[min(k + 5, last)] * half + column),
            U(index[min(k + 6, last)] * half + column), U(index[min(k + 7, last)] * half + column),
        )  # fmt: skip
        counts = (
            I(count[k]), I(count[k + 1] if m > 1 else 0), I(count[k + 2] if m > 2 else 0),
            I(count[k + 3] if m > 3 else 0), I(count[k + 4] if m > 4 else 0), I(count[k + 5] if m > 5 else 0),
            I(count[k + 6] if m > 6 else 0), I(count[k + 7] if m > 7 else 0),
        )  # fmt: skip
        _add_8(weight, places, counts, False, acc, a, n)
        _add_8(weight, places, counts, True, acc, a + n, n)
        k += GROUP


@compile
def _scale_sums(acc, a, n, total, scales, minimums, low, at, out, oo):  # type: ignore[no-untyped-def]
    """One group's part, float(sum) · d + float(Σ c) · m, onto the outputs; float(sum - 8 Σ c) · d without a minimum."""
    if low:
        lift = F(total)
        for j in range(n):
            out[oo + j] = out[oo + j] + (F(acc[a + j]) * _half(scales, at + j) + lift * _half(minimums, at + j))
    else:
        off = MIDDLE * total
        for j in range(n):
            out[oo + j] = out[oo + j] + F(acc[a + j] - off) * _half(scales, at + j)


@compile
def _list_group(w, k, group, half, at):  # type: ignore[no-untyped-def]
    """The events from `k` on that belong to one group, as a list of pairs at `at` of `w.lists`.

    Returns where the next group's begin, the sum of their counts, and how many pairs there are: -1 where 16 bits or a
    list do not hold them.
    """
    events, end, size, total = w.row[0].events, k, np.int64(0), np.int64(0)
    limit = (w.index[k] // group + 1) * group if k < events else np.int64(0)
    while end < events and w.index[end] < limit:
        total += w.count[end]
        size += abs(np.int64(w.count[end]))
        end += 1
    if size >= ROOM or end - k > MOST_EVENTS:
        return end, total, np.int64(-1)
    entries = np.int64(0)
    for q in range(k, end):
        entries = _list_count(w.lists, at, entries, np.int64(w.index[q]) * half, np.int64(w.count[q]))
    return end, total, (entries + 1) >> 1


@compile
def _add_listed(w, task, k, end, total, pairs, at, soon, worker):  # type: ignore[no-untyped-def]
    """Events k … end of a row, one group's, onto `w.dots`: whole tiles by the list at `at`, the rest one by one.

    `soon` is the place of the next group's list.
    """
    t = w.tasks[task]
    m = w.matrices[t.matrix]
    tall, column, n, low, done = m.outputs, t.column, t.columns, m.minimums != 0, np.int64(0)
    half, group = (tall + 1) // 2, w.index[k] // m.group
    more, first = max(0, min(n, tall - half - column)), group * tall + column
    if pairs >= 0:
        lists = w.lists.ctypes.data
        done = _add_tiles(
            m.address + column, lists + 8 * at, pairs, lists + 8 * soon, m.scales + 2 * first, m.minimums + 2 * first,
            low, total, w.dots.ctypes.data + 4 * (m.sums + column), half, more,
        )  # fmt: skip
    if done == n:
        return
    groups, rest, acc, a = (m.inputs + m.group - 1) // m.group, U(n - done), w.acc_64, U(worker * 2 * MOST_BYTES)
    scales = view(m.scales, groups * tall, INT16)
    minimums = view(m.minimums if low else m.scales, groups * tall, INT16)
    begin, oo = U(first + done), U(m.sums + column + done)
    _add_events(view(m.address, m.inputs * half, UINT8), w.index, w.count, k, end, half, column + done, rest, acc, a)
    _scale_sums(acc, a, rest, total, scales, minimums, low, begin, w.dots, oo)
    if more > done:
        high = U(more - done)
        _scale_sums(acc, a + rest, high, total, scales, minimums, low, begin + U(half), w.dots, oo + U(half))


@compile
def _clear_dots(w, task):  # type: ignore[no-untyped-def]
    """What a task adds to."""
    t = w.tasks[task]
    m = w.matrices[t.matrix]
    half, oo = (m.outputs + 1) // 2, U(m.sums + t.column)
    for j in range(U(t.columns)):
        w.dots[oo + j] = ZERO
    for j in range(U(max(0, min(t.columns, m.outputs - half - t.column)))):
        w.dots[oo + U(half) + j] = ZERO


@compile
def _accumulate_four_bits(w, task, worker):  # type: ignore[no-untyped-def]
    """One task of a projection with 4-bit weights: `w.dots` of the outputs of both nibbles of its bytes.

    A group without an event adds nothing. While one group is added, the next one's weights are asked for.
    """
    m = w.matrices[w.tasks[task].matrix]
    half, events, at, soon = (m.outputs + 1) // 2, w.row[0].events, worker * 2 * LIST, worker * 2 * LIST + LIST
    _clear_dots(w, task)
    k = np.int64(0)
    end, total, pairs = _list_group(w, k, m.group, half, at)
    while k < events:
        next_end, next_total, next_pairs = _list_group(w, end, m.group, half, soon)
        _add_listed(w, task, k, end, total, pairs, at, soon, worker)
        k, end, total, pairs, at, soon = end, next_end, next_total, next_pairs, soon, at


@compile
def _code_at(weight, row, half, o):  # type: ignore[no-untyped-def]
    """One code of a weight row that begins at `row`."""
    both = np.int32(weight[U(row + (o if o < half else o - half))])
    return both >> np.int32(4) if o >= half else both & np.int32(15)


@compile
def _embed_four_bits(w, table, token):  # type: ignore[no-untyped-def]
    """The residual stream begins as a token's row of a 4-bit table."""
    m = w.matrices[table]
    tall, group, half = m.outputs, m.group, (m.outputs + 1) // 2
    groups = (m.inputs + group - 1) // group
    weight, scales = view(m.address, m.inputs * half, UINT8), view(m.scales, groups * tall, INT16)
    for i in range(m.inputs):
        at = U(i // group * tall + token)
        q, d = _code_at(weight, i * half, half, token), _half(scales, at)
        if m.minimums:
            w.x[i] = F(q) * d + _half(view(m.minimums, groups * tall, INT16), at)
        else:
            w.x[i] = F(q - MIDDLE) * d


@compile
def _gate_up_four_bits(w, up, column, n, low, la, level, gate):  # type: ignore[no-untyped-def]
    """The second projection of a gate with 4-bit weights: channels column … column + n of w.heads[low …], in counts.

    `la` is a place in w.gates; the numbers go to w.heads[gate …], times `level`, their V.
    """
    own, lanes, rank, tall, group = w.heads, w.gates, up.inputs, up.outputs, up.group
    half, groups = (tall + 1) // 2, (rank + group - 1) // group
    weight, scales = view(up.address, rank * half, UINT8), view(up.scales, groups * tall, INT16)
    minimums = view(up.minimums if up.minimums else up.scales, groups * tall, INT16)
    for g in range(groups):
        total = np.int32(0)
        for i in range(U(n)):
            lanes[la + i] = 0
        for r in range(g * group, min(g * group + group, rank)):
            c = np.rint(own[low + U(r)] / level)
            if not abs(c) < INT32_RANGE:
                w.row[0].problem, c = GATE_NOT_FINITE, ZERO
            level_r = np.int32(c)
            total += level_r
            for i in range(n):
                lanes[la + U(i)] += level_r * _code_at(weight, r * half, half, column + i)
        for i in range(n):
            at, to = U(g * tall + column + i), gate + U(i)
            if up.minimums:
                part = F(lanes[la + U(i)]) * _half(scales, at) + F(total) * _half(minimums, at)
            else:
                part = F(lanes[la + U(i)] - np.int32(MIDDLE) * total) * _half(scales, at)
            own[to] = part if g == 0 else own[to] + part
    for i in range(U(n)):
        own[gate + i] = own[gate + i] * level
