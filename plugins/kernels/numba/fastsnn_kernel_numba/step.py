"""The stages of a fused decoding step: spikes of a row, their weight rows, the numbers behind the sums, attention.

The arithmetic is that of `fastsnn_integer.deterministic`, by the functions that its compiled twins are made of;
tables of whole numbers (`fastsnn_kernel_numba.stepper`) say where everything is.
"""

from __future__ import annotations

import numpy as np

from fastsnn_kernel_numba.attention import KEYS, _bits, _gather, _highest
from fastsnn_kernel_numba.event import GROUP, U, _ask, _take, _widen
from fastsnn_kernel_numba.exact import (
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
from fastsnn_kernel_numba.launch import compile, prefetch
from fastsnn_kernel_numba.views import i8
from fastsnn_linear_scan import MIN_LOG_GATE

(LEVELS, MEAN, MAX) = range(3)  # kinds of spikes
EVENTS, WIDE, BAD, SITE = range(4)  # of info
ADDRESS, TALL, INPUTS, SCALE, BIAS, SUMS, PARTS = range(7)  # of a matrix
MATRIX, COLUMN, COLUMNS, PART = range(4)  # of a task
KIND, CENTRE, BURST = range(3)  # of spikes, whole numbers
LEVEL, BOUND, DEAD = range(3)  # of spikes, fractions
FEATURE, ROTARY, WINDOW, GATE_DOWN, GATE_UP, MIX_NORM = range(6)  # of a mixer
TAU, EPS = range(2)  # of a mixer, fractions
FIRST, SECOND, ROOM, SEEN = range(4)  # of a mixer's state
LARGEST_LEVEL, SMALLEST_V, LARGEST_V, LEAST_CLIP = F(127), F(1e-5), F(1e4), F(1e-3)
COUNTS = F(2147483648.0)  # magnitudes stay below
MOST_BURST = 16
SUM_32 = (1 << 31) // 128  # Σ|c| from which sums take 64 bits
FLOOR = F(MIN_LOG_GATE)


@compile
def _fetch(x, first, size):  # type: ignore[no-untyped-def]
    """Ask for `size` float32 numbers."""
    for line in range(first, first + size, 16):
        prefetch(x, line)


@compile
def _largest(x, a, size):  # type: ignore[no-untyped-def]
    """max |x|, by bits: magnitudes are ordered like whole numbers (NaN above all), and those the compiler compares in
    vectors."""
    top = np.int32(0)
    for i in range(U(size)):
        top = max(top, _bits(abs(x[a + i])))
    return _as_float(top)


@compile
def _reach(x, a, size, burst, part, at):  # type: ignore[no-untyped-def]
    """The (burst + 1)-th largest |x|, by bits as in `_largest`; burst < MOST_BURST and < size."""
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
def _threshold(x, a, size, half, kind, level, bound, burst, part, at):  # type: ignore[no-untyped-def]
    """V of a row, and the largest |x| that `bound` holds for."""
    limit = F(np.inf)
    if kind == LEVELS:
        v = _largest(x, a, size) / LARGEST_LEVEL
        return (v if v > ZERO else ONE), limit
    if kind == MEAN:
        v = _folded(x, a, size, half, 1, part, at) / F(size) / level
    else:
        if burst > 0:
            limit = _reach(x, a, size, burst, part, at)
            v = limit
        else:
            v = _largest(x, a, size)
        v = v * (LEAST_CLIP if level < LEAST_CLIP else level) / bound
    v = SMALLEST_V if v < SMALLEST_V else v
    return (LARGEST_V if v > LARGEST_V else v), limit


@compile
def _round(x, a, size, v, kind, bound, dead, limit):  # type: ignore[no-untyped-def]
    """A row becomes its counts."""
    if kind == MEAN and bound > ZERO:
        for i in range(U(size)):
            u = x[a + i] / v
            c = -bound if u < -bound else bound if u > bound else u
            x[a + i] = ZERO if abs(u) < dead else np.rint(c)
    elif kind == MEAN and dead > ZERO:
        for i in range(U(size)):
            u = x[a + i] / v
            x[a + i] = ZERO if abs(u) < dead else np.rint(u)
    elif kind == MAX:
        for i in range(U(size)):
            u = x[a + i] / v
            free = np.rint(u)
            held = np.rint(-bound if u < -bound else bound if u > bound else u)
            held = free if abs(x[a + i]) > limit else held
            x[a + i] = free + (held - free)
    else:
        for i in range(U(size)):
            x[a + i] = np.rint(x[a + i] / v)


@compile
def _count(x, a, size, whole):  # type: ignore[no-untyped-def]
    """Counts as whole numbers; False where one is not finite or does not fit 32 bits."""
    fits = True
    for i in range(U(size)):
        fits &= abs(x[a + i]) < COUNTS
    for i in range(U(size)):
        whole[i] = np.int32(x[a + i])
    return fits


@compile
def _list(whole, size, index, count, info):  # type: ignore[no-untyped-def]
    """Events of a row; says how many there are, and whether their sums need 64 bits."""
    at, total = 0, np.int64(0)
    for i in range(U(size)):
        total += abs(np.int64(whole[i]))
    for i in range(U(size)):  # no branch: which inputs are active is random
        index[at] = np.int32(i)
        count[at] = whole[i]
        at += whole[i] != 0
    info[EVENTS], info[WIDE] = at, total >= SUM_32


@compile
def _spikes(x, size, ints, fracs, site, f, part, whole, index, count, info):  # type: ignore[no-untyped-def]
    """The row x, which is used up, as events; V."""
    if ints[site, CENTRE] >= 0:
        centre = U(ints[site, CENTRE])
        for i in range(U(size)):
            x[i] = x[i] - f[centre + i]
    kind, bound, burst = ints[site, KIND], fracs[site, BOUND], ints[site, BURST]
    v, limit = _threshold(x, U(0), size, _half_of(size), kind, fracs[site, LEVEL], bound, burst, part, U(0))
    _round(x, U(0), size, v, kind, bound, fracs[site, DEAD], limit)
    if not _count(x, U(0), size, whole):
        if info[BAD] == 0:
            info[BAD], info[SITE] = 1, site
        for i in range(size):  # nothing that follows counts any more, but it must stay inside its arrays
            whole[i] = 0
    _list(whole, size, index, count, info)
    return v


@compile
def _weigh(mats, tasks, t, worker, index, count, info, acc, width, sums, big):  # type: ignore[no-untyped-def]
    """One task of a projection: the events of its part onto its columns."""
    m, column, n, part = tasks[t, MATRIX], tasks[t, COLUMN], U(tasks[t, COLUMNS]), tasks[t, PART]
    tall, parts, events = mats[m, TALL], mats[m, PARTS], info[EVENTS]
    w = i8(mats[m, ADDRESS], tall * mats[m, INPUTS])
    first, last = events * part // parts, events * (part + 1) // parts
    oa, oo = U(worker * width), U(mats[m, SUMS] + part * tall + column)
    _ask(w, index, first, min(first + GROUP, last), tall, column, 0, np.int64(n))
    for j in range(n):
        acc[oa + j] = 0
    if info[WIDE]:
        for j in range(n):
            big[oo + j] = 0
        _take(w, index, count, first, last, tall, column, n, acc, oa, big, oo, 255)
        _widen(acc, oa, big, oo, n)
    else:
        for j in range(n):
            sums[oo + j] = 0
        _take(w, index, count, first, last, tall, column, n, acc, oa, sums, oo, 255)
        _widen(acc, oa, sums, oo, n)


@compile
def _scaled(mats, m, first, n, wide, sums, big, f, v, out, oo):  # type: ignore[no-untyped-def]
    """Outputs first … first + n of a matrix from its sums; once for every output, since parts are added in place."""
    so, tall, n = U(mats[m, SUMS] + first), U(mats[m, TALL]), U(n)
    scale = U(mats[m, SCALE] + first)
    if wide:
        for p in range(1, mats[m, PARTS]):
            for i in range(n):
                big[so + i] += big[so + U(p) * tall + i]
        for i in range(n):
            out[oo + i] = F(big[so + i]) * f[scale + i] * v
    else:
        for p in range(1, mats[m, PARTS]):
            for i in range(n):
                sums[so + i] += sums[so + U(p) * tall + i]
        for i in range(n):
            out[oo + i] = F(sums[so + i]) * f[scale + i] * v
    if mats[m, BIAS] >= 0:
        bias = U(mats[m, BIAS] + first)
        for i in range(n):
            out[oo + i] = out[oo + i] + f[bias + i]


@compile
def _gates(mats, down, up, column, n, wide, sums, big, f, v, tau, low, lo, lanes, la, gate, go, info):  # type: ignore[no-untyped-def]
    """Decays of `n` channels: the small projection's numbers become levels, then the second projection."""
    rank, tall = mats[up, INPUTS], mats[up, TALL]
    _scaled(mats, down, 0, rank, wide, sums, big, f, v, low, lo)
    level = _largest(low, lo, rank) / LARGEST_LEVEL
    level = level if level > ZERO else ONE
    w, n = i8(mats[up, ADDRESS], tall * rank), U(n)
    scale, bias = U(mats[up, SCALE] + column), U(mats[up, BIAS] + column)
    for i in range(n):
        lanes[la + i] = 0
    for r in range(rank):
        c = np.rint(low[lo + U(r)] / level)
        if not abs(c) < COUNTS:
            info[BAD], c = 2, ZERO
        level_r, row = np.int32(c), U(r * tall + column)
        for i in range(n):  # |level| <= 127, rank <= 4096: far from 32 bits
            lanes[la + i] += level_r * np.int32(w[row + i])
    for i in range(n):
        gate[go + i] = F(lanes[la + i]) * f[scale + i] * level
    if mats[up, BIAS] >= 0:
        for i in range(n):
            gate[go + i] = gate[go + i] + f[bias + i]
    for i in range(n):
        y = _logsigmoid(gate[go + i]) / tau
        gate[go + i] = FLOOR if y < FLOOR else y
    for i in range(n):
        gate[go + i] = _exp(gate[go + i])


@compile
def _turn(x, a, size, cos, sin, place, out, oo):  # type: ignore[no-untyped-def]
    """Rotary pairs (x_i, x_{i+K/2}) by the angles of a place."""
    half, p = U(size // 2), U(place * (size // 2))
    for i in range(half):
        low, high = x[a + i], x[a + half + i]
        out[oo + i] = low * cos[p + i] - high * sin[p + i]
        out[oo + half + i] = high * cos[p + i] + low * sin[p + i]


@compile
def _remember(keys, values, g, room, size, slot, k, ka, v, va):  # type: ignore[no-untyped-def]
    """A key and a value into a slot; keys lie channel by channel, `KEYS` of them side by side."""
    block = U(((g * (room // KEYS) + slot // KEYS) * size) * KEYS + slot % KEYS)
    row = U((g * room + slot) * size)
    for i in range(U(size)):
        keys[block + i * U(KEYS)] = k[ka + i]
        values[row + i] = v[va + i]


@compile
def _recall(q, a, keys, values, g, room, size, half, oldest, held, part, at, score, sa, out, oo):  # type: ignore[no-untyped-def]
    """Softmax attention of one query (scaled already) over `held` slots from the oldest on, round the end."""
    last = min(oldest + held, room)
    used = room if last < oldest + held else last
    for block in range(0 if used == room else oldest // KEYS, (used + KEYS - 1) // KEYS):
        b = U((g * (room // KEYS) + block) * size * KEYS)
        _dots(q, a, keys, b, KEYS, KEYS, size, half, part, at, score, sa + U(block * KEYS))
    first, rest = U(last - oldest), U(oldest + held - last)
    top = _highest(score, sa, rest, _highest(score, sa + U(oldest), first, F(-np.inf)))
    for j in range(first):
        score[sa + U(oldest) + j] = _exp(score[sa + U(oldest) + j] - top)
    for j in range(rest):
        score[sa + j] = _exp(score[sa + j] - top)
    n, norm = U(size), ZERO
    for i in range(n):
        out[oo + i] = ZERO
    norm = _gather(score, sa + U(oldest), values, U((g * room + oldest) * size), n, first, n, norm, out, oo)
    norm = _gather(score, sa, values, U(g * room * size), n, rest, n, norm, out, oo)
    norm = ONE if norm == ZERO else norm
    for i in range(n):
        out[oo + i] = out[oo + i] / norm
