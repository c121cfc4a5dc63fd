"""One token through a whole decoder in one parallel region: `_walk` is what every worker does.

Per layer: norm and spikes (one task) · q, k, v · heads (a task each) · spikes · output projection · norm and spikes ·
gate and up · hidden (columns) · spikes · down; then the last norm and the head. `fastsnn_kernel_numba.sync` hands out
the tasks. Projections are split over events where they are narrow, and the parts added by whoever reads them; over
columns where they are wide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import prange

from fastsnn_kernel_numba.event import U
from fastsnn_kernel_numba.exact import F, _apply, _dot, _dots, _grow, _half_of, _norm
from fastsnn_kernel_numba.launch import Threaded, compile
from fastsnn_kernel_numba.step import (
    EPS,
    FEATURE,
    FIRST,
    GATE_DOWN,
    GATE_UP,
    KEYS,
    MIX_NORM,
    ROOM,
    ROTARY,
    SECOND,
    SEEN,
    TAU,
    WIDE,
    WINDOW,
    _fetch,
    _gates,
    _recall,
    _remember,
    _scaled,
    _spikes,
    _turn,
    _weigh,
)  # fmt: skip
from fastsnn_kernel_numba.sync import draw, finish, wait
from fastsnn_kernel_numba.views import f32, f32_rows, i8, i16, i32, i64, rows

(
    NORM, SITE_IN, QKV, QKV_END, Q, K, V, Q_NORM, K_NORM, MIX, MIX_END, SITE_MIXED, OUT, OUT_TASKS, OUT_END,
    NORM_2, SITE_2, FF, FF_END, UP, GATE, ACTIVATION, SITE_HIDDEN, DOWN, DOWN_TASKS, DOWN_END, HIDDEN,
) = range(27)  # fmt: skip  # of a layer
BLOCK = 512  # hidden channels per task
AHEAD = 1 << 13  # numbers of a head's state that are asked for in advance, 32 KiB


class Work(NamedTuple):
    """Everything a step touches; whole numbers that say where, constants, and working memory."""

    sync: Any  # counters of the phases
    layers: Any  # [L, 27]
    mats: Any  # [·, 7]
    tasks: Any  # [·, 4]
    sites: Any  # [·, 3]
    levels: Any  # [·, 3] fractions of the sites
    mixers: Any  # [·, 6]
    rates: Any  # [·, 2] fractions of the mixers
    f: Any  # constants in float32
    codes: Any  # the embedding's table, 8 bits; empty where it is floats
    table: Any  # its scales, or its rows
    info: Any
    volts: Any  # V of the latest spikes
    x: Any  # residual stream [D]
    y: Any  # what becomes spikes
    z: Any  # the second hidden row
    mixed: Any
    whole: Any
    index: Any
    count: Any
    acc: Any
    sums: Any
    big: Any
    own: Any  # of every worker: heads
    part: Any  # of every worker: folds
    logits: Any
    lanes: Any  # of every worker: sums of gates


@compile
def _expect(w, state, layer, g, groups, size):  # type: ignore[no-untyped-def]
    """Ask for what a head will read of its state: nothing else foresees it."""
    row = w.layers[layer]
    for m in range(row[MIX], row[MIX_END]):
        if w.mixers[m, FEATURE] < 0:
            room, seen = state[m, ROOM], state[m, SEEN]
            held = min(-(-(seen + 1) // KEYS) * KEYS, room, AHEAD // size)
            _fetch(f32(state[m, FIRST], groups * room * size), g * room * size, held * size)
            _fetch(f32(state[m, SECOND], groups * room * size), g * room * size, held * size)
        else:
            _fetch(f32(state[m, FIRST], groups * size * size), g * size * size, min(size * size, AHEAD))


@compile
def _heads(w, state, score, cos, sin, place, layer, g, worker, shape, own_size, part_size):  # type: ignore[no-untyped-def]
    """A key/value head and its query heads: numbers, norms, rotation, attention, into `mixed`."""
    _, h_all, groups, size, eps = shape
    share, half, n = h_all // groups, _half_of(size), U(size)
    row, wide, v = w.layers[layer], w.info[WIDE], w.volts[0]
    own, part, pa = w.own, w.part, U(worker * part_size)
    q = U(worker * own_size)
    k, val = q + U(share * size), q + U((share + 1) * size)
    turned, gate, low = q + U((share + 2) * size), q + U((2 * share + 3) * size), q + U((2 * share + 4) * size)
    _scaled(w.mats, row[Q], g * share * size, share * size, wide, w.sums, w.big, w.f, v, own, q)
    _scaled(w.mats, row[K], g * size, size, wide, w.sums, w.big, w.f, v, own, k)
    _scaled(w.mats, row[V], g * size, size, wide, w.sums, w.big, w.f, v, own, val)
    if row[Q_NORM] >= 0:
        for h in range(share):
            a = q + U(h) * n
            _norm(own, a, size, half, w.f, U(row[Q_NORM]), True, eps, part, pa, own, a)
        _norm(own, k, size, half, w.f, U(row[K_NORM]), True, eps, part, pa, own, k)
    branches, scale = row[MIX_END] - row[MIX], w.volts[1]
    for m in range(row[MIX], row[MIX_END]):
        key, form = turned + U(share) * n, w.mixers[m, FEATURE]
        for h in range(share + 1):  # the key last
            a, o = q + U(h) * n, turned + U(h) * n
            if form >= 0:
                _apply(own, a, n, form, own, o)
            elif w.mixers[m, ROTARY]:
                _turn(own, a, size, cos, sin, place, own, o)
            else:
                for i in range(n):
                    own[o + i] = own[a + i]
        if form < 0:
            room, seen = state[m, ROOM], state[m, SEEN]
            keys = f32(state[m, FIRST], groups * room * size)
            values = f32(state[m, SECOND], groups * room * size)
            _remember(keys, values, g, room, size, seen % room, own, key, own, val)
            held = seen + 1 if w.mixers[m, WINDOW] == 0 else min(seen + 1, w.mixers[m, WINDOW])
            for h in range(share):
                a, to = turned + U(h) * n, U(((g * share + h) * branches + m - row[MIX]) * size)
                for i in range(n):
                    own[a + i] = own[a + i] * scale
                _recall(
                    own, a, keys, values, g, room, size, half, (seen + 1 - held) % room, held, part, pa,
                    score, U(worker * (len(score) // (len(own) // own_size))), w.mixed, to,
                )  # fmt: skip
            continue
        s = f32(state[m, FIRST], groups * size * size)
        z = f32(state[m, SECOND], groups * size)
        gated, so, zo = w.mixers[m, GATE_DOWN] >= 0, U(g * size * size), U(g * size)
        if gated:
            _gates(
                w.mats, w.mixers[m, GATE_DOWN], w.mixers[m, GATE_UP], g * size, size, wide, w.sums, w.big, w.f, v,
                w.rates[m, TAU], own, low, w.lanes, U(worker * size), own, gate, w.info,
            )  # fmt: skip
            for i in range(U(share * size)):
                own[turned + i] = own[turned + i] * scale
            _grow(own, key, own, val, own, gate, s, so, z, zo, size, n)
        else:
            _grow(own, key, own, val, w.own[:0], gate, s, so, z, zo, size, n)
        for h in range(share):
            a, to = turned + U(h) * n, U(((g * share + h) * branches + m - row[MIX]) * size)
            _dots(own, a, s, so, size, size, size, half, part, pa, w.mixed, to)
            if gated:
                at, eps_m = U(w.mixers[m, MIX_NORM]), w.rates[m, EPS]
                _norm(w.mixed, to, size, half, w.f, at, True, eps_m, part, pa, w.mixed, to)
            else:
                norm = _dot(own, a, z, zo, size, half, part, pa) + w.rates[m, EPS]
                for i in range(n):
                    w.mixed[to + i] = w.mixed[to + i] / norm


@compile
def _embed(w, token, width):  # type: ignore[no-untyped-def]
    """The residual stream begins as the token's row."""
    row = U(token * width)
    if len(w.codes):
        for i in range(U(width)):
            w.x[i] = F(w.codes[row + i]) * w.table[token]
    else:
        for i in range(U(width)):
            w.x[i] = w.table[row + i]


@compile
def _residual(w, m, width):  # type: ignore[no-untyped-def]
    """The outputs of a projection onto the residual stream."""
    _scaled(w.mats, m, 0, width, w.info[WIDE], w.sums, w.big, w.f, w.volts[0], w.y, U(0))
    for i in range(U(width)):
        w.x[i] = w.x[i] + w.y[i]


@compile
def _fire(w, size, site):  # type: ignore[no-untyped-def]
    """`y` becomes the events of the next projection."""
    w.volts[0] = _spikes(w.y, size, w.sites, w.levels, site, w.f, w.part, w.whole, w.index, w.count, w.info)


@compile
def _project(w, phase, first, last, worker, columns):  # type: ignore[no-untyped-def]
    """A phase of projection tasks."""
    t = draw(w.sync, phase)
    while t < last - first:
        _weigh(w.mats, w.tasks, first + t, worker, w.index, w.count, w.info, w.acc, columns, w.sums, w.big)
        finish(w.sync, phase)
        t = draw(w.sync, phase)
    wait(w.sync, phase, last - first)


@compile
def _hidden(w, layer, t):  # type: ignore[no-untyped-def]
    """A block of hidden channels: act(gate) · up, or act(up)."""
    row = w.layers[layer]
    first = t * BLOCK
    n, at = min(BLOCK, row[HIDDEN] - first), U(first)
    source = row[UP] if row[GATE] < 0 else row[GATE]
    _scaled(w.mats, source, first, n, w.info[WIDE], w.sums, w.big, w.f, w.volts[0], w.z, at)
    _apply(w.z, at, U(n), row[ACTIVATION], w.y, at)
    if row[GATE] < 0:
        return
    _scaled(w.mats, row[UP], first, n, w.info[WIDE], w.sums, w.big, w.f, w.volts[0], w.z, at)
    for i in range(U(n)):
        w.y[at + U(i)] = w.y[at + U(i)] * w.z[at + U(i)]


@compile
def _views(at):  # type: ignore[no-untyped-def]
    """The arrays of a `Work` at these places."""
    return Work(
        i64(at[0, 0], at[0, 1]), rows(at[1, 0], at[1, 1], 27), rows(at[2, 0], at[2, 1], 7),
        rows(at[3, 0], at[3, 1], 4), rows(at[4, 0], at[4, 1], 3), f32_rows(at[5, 0], at[5, 1], 3),
        rows(at[6, 0], at[6, 1], 6), f32_rows(at[7, 0], at[7, 1], 2), f32(at[8, 0], at[8, 1]),
        i8(at[9, 0], at[9, 1]), f32(at[10, 0], at[10, 1]), i64(at[11, 0], at[11, 1]), f32(at[12, 0], at[12, 1]),
        f32(at[13, 0], at[13, 1]), f32(at[14, 0], at[14, 1]), f32(at[15, 0], at[15, 1]), f32(at[16, 0], at[16, 1]),
        i32(at[17, 0], at[17, 1]), i32(at[18, 0], at[18, 1]), i32(at[19, 0], at[19, 1]), i16(at[20, 0], at[20, 1]),
        i32(at[21, 0], at[21, 1]), i64(at[22, 0], at[22, 1]), f32(at[23, 0], at[23, 1]), f32(at[24, 0], at[24, 1]),
        f32(at[25, 0], at[25, 1]), i32(at[26, 0], at[26, 1]),
    )  # fmt: skip


@compile
def _walk(at, states, scores, angles, token, place, shape, sizes, worker):  # type: ignore[no-untyped-def]
    """What one worker does of a token's step."""
    w, state, score = _views(at), rows(states[0], states[1], 4), f32(scores[0], scores[1])
    cos, sin = f32(angles[0], angles[2]), f32(angles[1], angles[2])
    width, h_all, groups, size, eps = shape
    own_size, part_size, columns, ahead = sizes
    half, phase, depth = _half_of(width), 0, len(w.layers) - 1
    for layer in range(depth):
        row = w.layers[layer]
        if draw(w.sync, phase) == 0:
            if layer == 0:
                _embed(w, token, width)
            else:
                _residual(w, w.layers[layer - 1, DOWN], width)
            _norm(w.x, U(0), width, half, w.f, U(row[NORM]), True, eps, w.part, U(0), w.y, U(0))
            _fire(w, width, row[SITE_IN])
            finish(w.sync, phase)
        wait(w.sync, phase, 1)
        _project(w, phase + 1, row[QKV], row[QKV_END], worker, columns)
        g = draw(w.sync, phase + 2)
        while g < groups:
            if g < ahead:
                _expect(w, state, layer, g, groups, size)
            if g + ahead < groups:
                _expect(w, state, layer, g + ahead, groups, size)
            _heads(w, state, score, cos, sin, place, layer, g, worker, shape, own_size, part_size)
            finish(w.sync, phase + 2)
            g = draw(w.sync, phase + 2)
        wait(w.sync, phase + 2, groups)
        if draw(w.sync, phase + 3) == 0:
            inside = h_all * size * (row[MIX_END] - row[MIX])
            for i in range(U(inside)):
                w.y[i] = w.mixed[i]
            _fire(w, inside, row[SITE_MIXED])
            finish(w.sync, phase + 3)
        wait(w.sync, phase + 3, 1)
        _project(w, phase + 4, row[OUT_TASKS], row[OUT_END], worker, columns)
        if draw(w.sync, phase + 5) == 0:
            _residual(w, row[OUT], width)
            _norm(w.x, U(0), width, half, w.f, U(row[NORM_2]), True, eps, w.part, U(0), w.y, U(0))
            _fire(w, width, row[SITE_2])
            finish(w.sync, phase + 5)
        wait(w.sync, phase + 5, 1)
        _project(w, phase + 6, row[FF], row[FF_END], worker, columns)
        blocks = (row[HIDDEN] + BLOCK - 1) // BLOCK
        t = draw(w.sync, phase + 7)
        while t < blocks:
            _hidden(w, layer, t)
            finish(w.sync, phase + 7)
            t = draw(w.sync, phase + 7)
        wait(w.sync, phase + 7, blocks)
        if draw(w.sync, phase + 8) == 0:
            _fire(w, row[HIDDEN], row[SITE_HIDDEN])
            finish(w.sync, phase + 8)
        wait(w.sync, phase + 8, 1)
        _project(w, phase + 9, row[DOWN_TASKS], row[DOWN_END], worker, columns)
        phase += 10
    row = w.layers[depth]  # the last norm and the head
    if draw(w.sync, phase) == 0:
        if depth:
            _residual(w, w.layers[depth - 1, DOWN], width)
        else:
            _embed(w, token, width)
        _norm(w.x, U(0), width, half, w.f, U(row[NORM]), True, eps, w.part, U(0), w.y, U(0))
        _fire(w, width, row[SITE_IN])
        finish(w.sync, phase)
    wait(w.sync, phase, 1)
    first, last = row[QKV], row[QKV_END]
    t = draw(w.sync, phase + 1)
    while t < last - first:
        _weigh(w.mats, w.tasks, first + t, worker, w.index, w.count, w.info, w.acc, columns, w.sums, w.big)
        at, n = w.tasks[first + t, 1], w.tasks[first + t, 2]
        _scaled(w.mats, row[Q], at, n, w.info[WIDE], w.sums, w.big, w.f, w.volts[0], w.logits, U(at))
        finish(w.sync, phase + 1)
        t = draw(w.sync, phase + 1)
    wait(w.sync, phase + 1, last - first)


@Threaded
def _step(at, states, scores, angles, token, place, shape, sizes, nw):  # type: ignore[no-untyped-def]
    for worker in prange(nw):
        _walk(at, states, scores, angles, token, place, shape, sizes, worker)
