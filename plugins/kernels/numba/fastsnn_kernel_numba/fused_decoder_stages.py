"""Stages of the fused decoding step: counts of a row, INT8 products, dequantising, gates, attention over a cache.

The arithmetic is that of `fastsnn_integer.deterministic`, by the functions that its compiled twins are made of. Tables
(`fastsnn_kernel_numba.layout`) say where everything is: ``w`` is a `WorkspaceAt`, ``rule`` a record `SITE`.
"""

from __future__ import annotations

import numpy as np

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.attention import KEYS, _bits, _gather, _highest
from fastsnn_kernel_numba.deterministic import (
    ONE,
    ZERO,
    F,
    _as_float,
    _dots,
    _exp,
    _folded,
    _half_of,
    _logsigmoid,
)
from fastsnn_kernel_numba.event_quads import _eights
from fastsnn_kernel_numba.fused_decoder_four_bits import _gate_up_four_bits
from fastsnn_kernel_numba.gemm_events import GROUP, U, _accumulate_events, _flush_int16, _prefetch_rows
from fastsnn_kernel_numba.layout import GATE_NOT_FINITE, INT8, MAX_ABS, MEAN_ABS, NOT_FINITE
from fastsnn_kernel_numba.numba_runtime import compile, prefetch

INT8_MAX = F(127)
INT32_RANGE = F(2147483648.0)  # magnitudes of counts stay below
MOST_BURST = 16
STRETCH = 16  # inputs that are looked at together where few are active
LINE = 16  # keys that are scored together, a cache line
SUM_32 = (1 << 31) // 128  # Σ|c| from which sums take 64 bits


@compile
def _prefetch_floats(x, first, size):  # type: ignore[no-untyped-def]
    """Prefetch `size` float32 numbers."""
    for line in range(first, first + size, 16):
        prefetch(x, line)


@compile
def _max_abs(x, a, size):  # type: ignore[no-untyped-def]
    """max |x|, by bits: magnitudes are ordered like whole numbers (NaN above all), and those the compiler compares in
    vectors."""
    top = np.int32(0)
    for i in range(U(size)):
        top = max(top, _bits(abs(x[a + i])))
    return _as_float(top)


@compile
def _nth_largest(x, a, size, burst, part, at):  # type: ignore[no-untyped-def]
    """The (burst + 1)-th largest |x|, by bits as in `_max_abs`; burst < MOST_BURST and < size."""
    for j in range(U(burst + 1)):
        part[at + j] = ZERO
    for i in range(U(size)):
        m, j = abs(x[a + i]), burst
        if _bits(m) > _bits(part[at + U(burst)]):
            while j > 0 and _bits(part[at + U(j - 1)]) < _bits(m):
                part[at + U(j)] = part[at + U(j - 1)]
                j -= 1
            part[at + U(j)] = m
    return part[at + U(burst)]


@compile
def _threshold(x, a, size, half, rule, part, at):  # type: ignore[no-untyped-def]
    """V of a row, and the largest |x| that `bound` holds for."""
    limit = F(np.inf)
    if rule.statistic == MAX_ABS:
        if rule.burst > 0:
            limit = _nth_largest(x, a, size, rule.burst, part, at)
            v = limit
        else:
            v = _max_abs(x, a, size)
    elif rule.statistic == MEAN_ABS:
        v = _folded(x, a, size, half, 1, part, at) / F(size)
    else:
        v = np.sqrt(_folded(x, a, size, half, 2, part, at) / F(size))
    v = v * rule.gain / rule.divisor
    v = rule.v_min if v < rule.v_min else v
    v = rule.v_max if v > rule.v_max else v
    return (ONE if v == ZERO else v), limit


@compile
def _round_counts(x, a, size, v, rule, limit):  # type: ignore[no-untyped-def]
    """A row becomes its counts."""
    bound, dead_zone = rule.bound, rule.dead_zone
    if bound < F(np.inf) or dead_zone > ZERO:
        for i in range(U(size)):
            u = x[a + i] / v
            c = -bound if u < -bound else bound if u > bound else u
            c = np.rint(u if abs(x[a + i]) > limit else c)
            x[a + i] = ZERO if abs(u) < dead_zone else c
    else:
        for i in range(U(size)):
            x[a + i] = np.rint(x[a + i] / v)


@compile
def _to_int32(x, a, size, counts):  # type: ignore[no-untyped-def]
    """Counts as whole numbers; False where one is not finite or does not fit 32 bits."""
    fits = True
    for i in range(U(size)):
        fits &= abs(x[a + i]) < INT32_RANGE
    for i in range(U(size)):
        counts[i] = np.int32(x[a + i])
    return fits


@compile
def _count_events(counts, size, row):  # type: ignore[no-untyped-def]
    """How many events a row has, and whether their sums need 64 bits."""
    events, total = np.int32(0), np.int64(0)
    for i in range(U(size)):
        total += abs(np.int64(counts[i]))
    for i in range(U(size)):
        events += np.int32(counts[i] != 0)
    row[0].events, row[0].wide = np.int64(events), np.int64(total >= SUM_32)


@compile
def _list_events(counts, size, index, count):  # type: ignore[no-untyped-def]
    """Events of a row."""
    _list_part(counts, U(0), U(size), index, count, 0)


@compile
def _list_part(counts, first, last, index, count, at):  # type: ignore[no-untyped-def]
    """Events of the inputs first … last behind `at` others; how many there are then."""
    for i in range(first, last):  # no branch: which inputs are active is random
        index[at] = np.int32(i)
        count[at] = counts[i]
        at += counts[i] != 0
    return at


@compile
def _list_few(counts, size, index, count):  # type: ignore[no-untyped-def]
    """`_list_events` of a row most of whose stretches of `STRETCH` inputs are silent."""
    at, whole = 0, U(size) // U(STRETCH) * U(STRETCH)
    for first in range(U(0), whole, U(STRETCH)):
        found = np.int32(0)
        for i in range(U(STRETCH)):
            found |= counts[first + i]
        if found != 0:
            at = _list_part(counts, first, first + U(STRETCH), index, count, at)
    _list_part(counts, whole, U(size), index, count, at)


@compile
def _quantise_row(w, size, site, pa):  # type: ignore[no-untyped-def]
    """The row y, which is used up, becomes the counts of a site, and V; `pa` is a place in w.folds."""
    x, rule = w.y, w.sites[site]
    if rule.centre >= 0:
        centre = U(rule.centre)
        for i in range(U(size)):
            x[i] = x[i] - w.constants[centre + i]
    v, limit = _threshold(x, U(0), size, _half_of(size), rule, w.folds, pa)
    _round_counts(x, U(0), size, v, rule, limit)
    if not _to_int32(x, U(0), size, w.counts):
        if w.row[0].problem == 0:
            w.row[0].problem, w.row[0].site = NOT_FINITE, site
        for i in range(size):  # nothing that follows counts any more, but it must stay inside its arrays
            w.counts[i] = 0
    _count_events(w.counts, size, w.row)
    w.threshold[0] = v


@compile
def _accumulate_task(w, task, worker, widest):  # type: ignore[no-untyped-def]
    """One task of a projection: the events of its part onto its columns."""
    t = w.tasks[task]
    m = w.matrices[t.matrix]
    column, n, part, tall, parts, events = t.column, U(t.columns), t.part, m.outputs, m.parts, w.row[0].events
    weight = view(m.address, tall * m.inputs, INT8)
    first, last = events * part // parts, events * (part + 1) // parts
    oa, oo = U(worker * widest), U(m.sums + part * tall + column)
    _prefetch_rows(weight, w.index, first, min(first + GROUP, last), tall, column, 0, np.int64(n))
    room = w.acc.ctypes.data + 2 * worker * widest
    if first < last and _eights(w, m, first, last, column, t.columns, room, np.int64(oo)):
        return
    for j in range(n):
        w.acc[oa + j] = 0
    if w.row[0].wide:
        for j in range(n):
            w.sums_64[oo + j] = 0
        _accumulate_events(weight, w.index, w.count, first, last, tall, column, n, w.acc, oa, w.sums_64, oo, 255, last)
        _flush_int16(w.acc, oa, w.sums_64, oo, n)
    else:
        for j in range(n):
            w.sums[oo + j] = 0
        _accumulate_events(weight, w.index, w.count, first, last, tall, column, n, w.acc, oa, w.sums, oo, 255, last)
        _flush_int16(w.acc, oa, w.sums, oo, n)


@compile
def _scale_parts(sums, so, tall, parts, f, scale, v, n, out, oo):  # type: ignore[no-untyped-def]
    """float(Σ sum) · scale · V over the 1, 2 or 4 parts of sums, which lie `tall` numbers apart."""
    if parts == 1:
        for i in range(n):
            out[oo + i] = F(sums[so + i]) * f[scale + i] * v
    elif parts == 2:
        b = so + tall
        for i in range(n):
            out[oo + i] = F(sums.dtype.type(sums[so + i] + sums[b + i])) * f[scale + i] * v
    else:
        b, c, d = so + tall, so + U(2) * tall, so + U(3) * tall
        for i in range(n):
            total = (sums[so + i] + sums[b + i]) + (sums[c + i] + sums[d + i])
            out[oo + i] = F(sums.dtype.type(total)) * f[scale + i] * v


@compile
def _dequantise(w, matrix, first, n, out, oo):  # type: ignore[no-untyped-def]
    """y = float(sum) · scale · V + bias of the outputs first … first + n of a matrix, from place `oo` of `out` on.

    Sums are only read: several workers may do so at once.
    """
    m, v, f = w.matrices[matrix], w.threshold[0], w.constants
    so, n, scale = U(m.sums + first), U(n), U(m.scale + first)
    if m.group:
        for i in range(n):
            out[oo + i] = w.dots[so + i] * v
    elif w.row[0].wide:
        _scale_parts(w.sums_64, so, U(m.outputs), m.parts, f, scale, v, n, out, oo)
    else:
        _scale_parts(w.sums, so, U(m.outputs), m.parts, f, scale, v, n, out, oo)
    if m.bias >= 0:
        bias = U(m.bias + first)
        for i in range(n):
            out[oo + i] = out[oo + i] + f[bias + i]


@compile
def _dequantise_task(w, matrix, column, n):  # type: ignore[no-untyped-def]
    """The outputs of a task become logits; a task of 4-bit weights has those of both halves of its bytes."""
    m = w.matrices[matrix]
    _dequantise(w, matrix, column, n, w.logits, U(column))
    if m.group:
        second = (m.outputs + 1) // 2 + column
        more = min(n, m.outputs - second)
        if more > 0:
            _dequantise(w, matrix, second, more, w.logits, U(second))


@compile
def _gate_up(w, up, column, n, low, la, level, gate):  # type: ignore[no-untyped-def]
    """The second projection of a gate: channels column … column + n of the counts of w.heads[low …], V = `level`."""
    own, lanes, f, rank, tall = w.heads, w.gates, w.constants, up.inputs, up.outputs
    weight, n, scale = view(up.address, tall * rank, INT8), U(n), U(up.scale + column)
    for i in range(n):
        lanes[la + i] = 0
    for r in range(rank):
        c = np.rint(own[low + U(r)] / level)
        if not abs(c) < INT32_RANGE:
            w.row[0].problem, c = GATE_NOT_FINITE, ZERO
        level_r, row = np.int32(c), U(r * tall + column)
        for i in range(n):  # |level| <= 127, rank <= 4096: far from 32 bits
            lanes[la + i] += level_r * np.int32(weight[row + i])
    for i in range(n):
        own[gate + i] = F(lanes[la + i]) * f[scale + i] * level


@compile
def _gate_row(w, mixer, column, n, low, la, gate):  # type: ignore[no-untyped-def]
    """g of `n` channels from `column` on, to w.heads[gate …]: the low-rank projection is quantised to INT8, then `up`.

    `low` is a place in w.heads for the low-rank numbers, `la` one in w.gates.
    """
    mix, own, f = w.mixers[mixer], w.heads, w.constants
    up = w.matrices[mix.gate_up]
    rank = up.inputs
    _dequantise(w, mix.gate_down, 0, rank, own, low)
    level = _max_abs(own, low, rank) / INT8_MAX
    level = level if level > ZERO else ONE
    if up.group:
        _gate_up_four_bits(w, up, column, n, low, la, level, gate)
    else:
        _gate_up(w, up, column, n, low, la, level, gate)
    n, bias = U(n), U(up.bias + column)
    if up.bias >= 0:
        for i in range(n):
            own[gate + i] = own[gate + i] + f[bias + i]
    tau, floor = mix.tau, mix.floor
    for i in range(n):
        y = _logsigmoid(own[gate + i]) / tau
        own[gate + i] = floor if y < floor else y
    for i in range(n):
        own[gate + i] = _exp(own[gate + i])


@compile
def _rotate(x, a, size, cos, sin, position, out, oo):  # type: ignore[no-untyped-def]
    """Rotary pairs (x_i, x_{i+K/2}) by the angles of a position."""
    half, p = U(size // 2), U(position * (size // 2))
    for i in range(half):
        low, high = x[a + i], x[a + half + i]
        out[oo + i] = low * cos[p + i] - high * sin[p + i]
        out[oo + half + i] = high * cos[p + i] + low * sin[p + i]


@compile
def _append_key_value(keys, values, g, capacity, size, slot, x, key, value):  # type: ignore[no-untyped-def]
    """x[key …] and x[value …] into a slot; keys lie channel by channel, `KEYS` of them side by side."""
    block = U(((g * (capacity // KEYS) + slot // KEYS) * size) * KEYS + slot % KEYS)
    row = U((g * capacity + slot) * size)
    for i in range(U(size)):
        keys[block + i * U(KEYS)] = x[key + i]
        values[row + i] = x[value + i]


@compile
def _attend_cache(q, a, cache, soon, oldest, held, part, at, score, sa, out, oo):  # type: ignore[no-untyped-def]
    """Softmax attention of one query (scaled already) over `held` slots from the oldest on, round the end.

    `cache` is (keys, values, which of its heads, slots, channels of a head). While a block of keys is scored, floats of
    the same blocks of another head are asked for: `soon` is (which, from, to).
    """
    keys, values, g, capacity, size = cache
    last, half = min(oldest + held, capacity), _half_of(size)
    used = capacity if last < oldest + held else last
    for block in range(0 if used == capacity else oldest // KEYS, (used + KEYS - 1) // KEYS):
        b = U((g * (capacity // KEYS) + block) * size * KEYS)
        if soon[2] > soon[1]:
            other = (soon[0] * (capacity // KEYS) + block) * size * KEYS + soon[1]
            _prefetch_floats(keys, other, soon[2] - soon[1])
            _prefetch_floats(values, other, soon[2] - soon[1])
        n = min(KEYS, (used - block * KEYS + LINE - 1) // LINE * LINE)
        _dots(q, a, keys, b, KEYS, n, size, half, part, at, score, sa + U(block * KEYS))
    first, rest = U(last - oldest), U(oldest + held - last)
    top = _highest(score, sa, rest, _highest(score, sa + U(oldest), first, F(-np.inf)))
    for j in range(first):
        score[sa + U(oldest) + j] = _exp(score[sa + U(oldest) + j] - top)
    for j in range(rest):
        score[sa + j] = _exp(score[sa + j] - top)
    n, norm = U(size), ZERO
    for i in range(n):
        out[oo + i] = ZERO
    norm = _gather(score, sa + U(oldest), values, U((g * capacity + oldest) * size), n, first, n, norm, out, oo)
    norm = _gather(score, sa, values, U(g * capacity * size), n, rest, n, norm, out, oo)
    norm = ONE if norm == ZERO else norm
    for i in range(n):
        out[oo + i] = out[oo + i] / norm
