"""4-bit weights in the fused step: products of a row's events group by group, gates, and rows of the embedding.

The arithmetic is `fastsnn_integer.four_bits`: exact sums per group (16 bits where the group's counts allow, else 64),
then the scale and the minimum, groups one after the other. A task is a range of bytes of every weight row: an event
reads one contiguous piece and adds it to the sums of both nibbles. Scales stay float16 in memory and are widened as
they are read.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from fastsnn_integer.four_bits import MIDDLE
from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.deterministic import ZERO, F, _as_float
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import GATE_NOT_FINITE, INT16, UINT8
from fastsnn_kernel_numba.numba_runtime import compile, prefetch

GROUP = 8  # weight rows added per pass
ROOM = (1 << 15) // 16  # Σ|c| of a group below which 16 bits hold Σ c q
MOST_BYTES = 1024  # of a task
INT32_RANGE = F(2147483648.0)
HALVES = bool(binding.get_host_cpu_features().get("f16c", False)) or platform.machine().lower() in ("aarch64", "arm64")
SHIFT, SIGN, REST = np.int32(13), np.int32(-(1 << 31)), np.int32(0x7FFF)
LIFT = F(2.0**112)  # 2^(127 - 15): between the exponents of float16 and float32


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
    mask, four = np.uint8(15), np.uint8(4)
    if high:
        for j in range(n):
            s = c0 * np.int16(w[o0 + j] >> four) + c1 * np.int16(w[o1 + j] >> four) + c2 * np.int16(w[o2 + j] >> four)
            s += c3 * np.int16(w[o3 + j] >> four) + c4 * np.int16(w[o4 + j] >> four) + c5 * np.int16(w[o5 + j] >> four)
            s += c6 * np.int16(w[o6 + j] >> four) + c7 * np.int16(w[o7 + j] >> four)
            acc[a + j] = acc.dtype.type(acc[a + j] + s)
    else:
        for j in range(n):
            s = c0 * np.int16(w[o0 + j] & mask) + c1 * np.int16(w[o1 + j] & mask) + c2 * np.int16(w[o2 + j] & mask)
            s += c3 * np.int16(w[o3 + j] & mask) + c4 * np.int16(w[o4 + j] & mask) + c5 * np.int16(w[o5 + j] & mask)
            s += c6 * np.int16(w[o6 + j] & mask) + c7 * np.int16(w[o7 + j] & mask)
            acc[a + j] = acc.dtype.type(acc[a + j] + s)


@compile
def _add_events(weight, index, count, k, end, soon, half, column, n, acc, a):  # type: ignore[no-untyped-def]
    """Events k … end, of one group, onto the sums of low nibbles at `a` and of high ones `n` behind.

    The rows of the events up to `soon` are asked for in advance.
    """
    kind = acc.dtype.type
    for j in range(n + n):
        acc[a + j] = 0
    while k < end:
        last, m = end - 1, end - k
        for q in range(min(k + GROUP, soon), min(k + 2 * GROUP, soon)):
            for line in range(index[q] * half + column, index[q] * half + column + np.int64(n), 64):
                prefetch(weight, line)
        places = (
            U(index[k] * half + column), U(index[min(k + 1, last)] * half + column),
            U(index[min(k + 2, last)] * half + column), U(index[min(k + 3, last)] * half + column),
            U(index[min(k + 4, last)] * half + column), U(index[min(k + 5, last)] * half + column),
            U(index[min(k + 6, last)] * half + column), U(index[min(k + 7, last)] * half + column),
        )  # fmt: skip
        counts = (
            kind(count[k]), kind(count[k + 1] if m > 1 else 0), kind(count[k + 2] if m > 2 else 0),
            kind(count[k + 3] if m > 3 else 0), kind(count[k + 4] if m > 4 else 0), kind(count[k + 5] if m > 5 else 0),
            kind(count[k + 6] if m > 6 else 0), kind(count[k + 7] if m > 7 else 0),
        )  # fmt: skip
        _add_8(weight, places, counts, False, acc, a, n)
        _add_8(weight, places, counts, True, acc, a + n, n)
        k += GROUP


@compile
def _scale_sums(kind, acc, a, n, total, scales, minimums, low, at, out, oo):  # type: ignore[no-untyped-def]
    """One group's part, float(sum) · d + float(Σ c) · m (without a minimum float(sum - 8 Σ c) · d), onto the outputs.

    `kind` holds the sums: 32 or 64 bits."""
    if low:
        lift = F(total)
        for j in range(n):
            out[oo + j] = out[oo + j] + (F(acc[a + j]) * _half(scales, at + j) + lift * _half(minimums, at + j))
    else:
        off = kind(MIDDLE * total)
        for j in range(n):
            out[oo + j] = out[oo + j] + F(kind(kind(acc[a + j]) - off)) * _half(scales, at + j)


@compile
def _accumulate_four_bits(w, task, oa, worker):  # type: ignore[no-untyped-def]
    """One task of a projection with 4-bit weights: `w.dots` of the outputs of both nibbles of its bytes.

    A group without an event adds nothing. `oa` is the worker's place in `w.acc`, for twice the task's bytes.
    """
    t = w.tasks[task]
    m = w.matrices[t.matrix]
    tall, inputs, group, events = m.outputs, m.inputs, m.group, w.row[0].events
    half, column, n = (tall + 1) // 2, t.column, U(t.columns)
    more = U(max(0, min(t.columns, tall - half - column)))
    groups = (inputs + group - 1) // group
    weight = view(m.address, inputs * half, UINT8)
    low = m.minimums != 0
    scales = view(m.scales, groups * tall, INT16)
    minimums = view(m.minimums if low else m.scales, groups * tall, INT16)
    oo, ow = U(m.sums + column), U(worker * 2 * MOST_BYTES)
    second = oo + U(half)
    for j in range(n):
        w.dots[oo + j] = ZERO
    for j in range(more):
        w.dots[second + j] = ZERO
    for q in range(min(GROUP, events)):
        for line in range(w.index[q] * half + column, w.index[q] * half + column + t.columns, 64):
            prefetch(weight, line)
    k = 0
    while k < events:
        g = w.index[k] // group
        end, size, total, limit = k, np.int64(0), np.int64(0), (g + 1) * group
        while end < events and w.index[end] < limit:
            total += w.count[end]
            size += abs(np.int64(w.count[end]))
            end += 1
        at = U(g * tall + column)
        if size < ROOM:
            _add_events(weight, w.index, w.count, k, end, events, half, column, n, w.acc, oa)
            _scale_sums(np.int32, w.acc, oa, n, total, scales, minimums, low, at, w.dots, oo)
            _scale_sums(np.int32, w.acc, oa + n, more, total, scales, minimums, low, at + U(half), w.dots, second)
        else:
            _add_events(weight, w.index, w.count, k, end, events, half, column, n, w.acc_64, ow)
            _scale_sums(np.int64, w.acc_64, ow, n, total, scales, minimums, low, at, w.dots, oo)
            _scale_sums(np.int64, w.acc_64, ow + n, more, total, scales, minimums, low, at + U(half), w.dots, second)
        k = end


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
