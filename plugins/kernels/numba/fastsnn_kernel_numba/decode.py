"""One token through a whole decoder in one parallel region: `_walk` is what every worker does.

A layer has four projections (q, k and v together · output · gate and up together · down), and each of them the same
stages: whoever draws it makes the row ready (residual, norm) and fires it; tasks of weight rows; then, behind the first
and the third, heads or hidden channels. The head of the network is one projection more. `fastsnn_kernel_numba.sync`
hands out the tasks. Projections are split over events where they are narrow, and the parts added by whoever reads them;
over columns where they are wide.

The walk is compiled by itself and the region calls it by its address: a caller that holds its code would have it all
optimised again, and everything here is written so that each piece occurs once (compiling took a minute before).
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from fastsnn_kernel_numba.event import U
from fastsnn_kernel_numba.exact import F, _apply, _dot, _dots, _grow, _half_of, _norm
from fastsnn_kernel_numba.launch import Threaded, compile, digest
from fastsnn_kernel_numba.step import (
    COLUMN,
    COLUMNS,
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

log = logging.getLogger("fastsnn")
SITE, TASKS, TASKS_END, NORM, ADD, SIZE, STAGE = range(7)  # of a projection; the last is how many these are
Q, K, V, Q_NORM, K_NORM, MIX, MIX_END, UP, GATE, ACTIVATION, HIDDEN, LAYER = range(4 * STAGE, 4 * STAGE + 12)
INTO_HEADS, INTO_OUT, INTO_HIDDEN, INTO_DOWN = range(4)  # projections
BLOCK = 512  # hidden channels per task
AHEAD = 1 << 13  # numbers of a head's state that are asked for in advance, 32 KiB
TOKEN, PLACE, HEADS, GROUPS, HEAD_SIZE, OWN, PART_SIZE, WIDEST, WORKERS, CALL = range(
    10, 20
)  # of a call, behind places
SCALE_V, EPSILON = 1, 2  # of volts, beside V


class Work(NamedTuple):
    """Everything a step touches; whole numbers that say where, constants, and working memory."""

    sync: Any  # counters of the phases
    layers: Any  # [L + 1, LAYER]
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
    h_all, groups, size = shape
    share, half, n, eps = h_all // groups, _half_of(size), U(size), w.volts[EPSILON]
    row, wide, v = w.layers[layer], w.info[WIDE], w.volts[0]
    own, part, pa = w.own, w.part, U(worker * part_size)
    q = U(worker * own_size)
    k, val = q + U(share * size), q + U((share + 1) * size)
    turned, gate, low = q + U((share + 2) * size), q + U((2 * share + 3) * size), q + U((2 * share + 4) * size)
    for i in range(3):  # q, k, v lie one after the other
        numbers, to = (share * size, q) if i == 0 else (size, k if i == 1 else val)
        _scaled(w.mats, row[Q + i], g * numbers, numbers, wide, w.sums, w.big, w.f, v, own, to)
    for h in range(share + 1 if row[Q_NORM] >= 0 else 0):
        a = q + U(h) * n
        _norm(own, a, size, half, w.f, U(row[Q_NORM if h < share else K_NORM]), True, eps, part, pa, own, a)
    branches, scale = row[MIX_END] - row[MIX], w.volts[SCALE_V]
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
        _grow(own, key, own, val, gated, own, gate, s, so, z, zo, size, n)
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
def _ready(w, layer, stage, token):  # type: ignore[no-untyped-def]
    """The row in front of a projection becomes its events."""
    row, width = w.layers[layer], len(w.x)
    at = stage * STAGE
    size = row[at + SIZE]
    if layer == 0 and stage == 0:
        _embed(w, token, width)
    elif row[at + ADD] >= 0:
        _scaled(w.mats, row[at + ADD], 0, width, w.info[WIDE], w.sums, w.big, w.f, w.volts[0], w.y, U(0))
        for i in range(U(width)):
            w.x[i] = w.x[i] + w.y[i]
    if row[at + NORM] >= 0:
        half, eps = _half_of(width), w.volts[EPSILON]
        _norm(w.x, U(0), width, half, w.f, U(row[at + NORM]), True, eps, w.part, U(0), w.y, U(0))
    elif stage == INTO_OUT:
        for i in range(U(size)):
            w.y[i] = w.mixed[i]
    site = row[at + SITE]
    w.volts[0] = _spikes(w.y, size, w.sites, w.levels, site, w.f, w.part, w.whole, w.index, w.count, w.info)


@compile
def _project(w, phase, first, last, worker, columns, head):  # type: ignore[no-untyped-def]
    """A phase of projection tasks; those of the network's head (a matrix, else -1) become logits at once."""
    t = draw(w.sync, phase)
    while t < last - first:
        _weigh(w.mats, w.tasks, first + t, worker, w.index, w.count, w.info, w.acc, columns, w.sums, w.big)
        if head >= 0:
            at, n = w.tasks[first + t, COLUMN], w.tasks[first + t, COLUMNS]
            _scaled(w.mats, head, at, n, w.info[WIDE], w.sums, w.big, w.f, w.volts[0], w.logits, U(at))
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
        i64(at[0, 0], at[0, 1]), rows(at[1, 0], at[1, 1], LAYER), rows(at[2, 0], at[2, 1], 7),
        rows(at[3, 0], at[3, 1], 4), rows(at[4, 0], at[4, 1], 3), f32_rows(at[5, 0], at[5, 1], 3),
        rows(at[6, 0], at[6, 1], 6), f32_rows(at[7, 0], at[7, 1], 2), f32(at[8, 0], at[8, 1]),
        i8(at[9, 0], at[9, 1]), f32(at[10, 0], at[10, 1]), i64(at[11, 0], at[11, 1]), f32(at[12, 0], at[12, 1]),
        f32(at[13, 0], at[13, 1]), f32(at[14, 0], at[14, 1]), f32(at[15, 0], at[15, 1]), f32(at[16, 0], at[16, 1]),
        i32(at[17, 0], at[17, 1]), i32(at[18, 0], at[18, 1]), i32(at[19, 0], at[19, 1]), i16(at[20, 0], at[20, 1]),
        i32(at[21, 0], at[21, 1]), i64(at[22, 0], at[22, 1]), f32(at[23, 0], at[23, 1]), f32(at[24, 0], at[24, 1]),
        f32(at[25, 0], at[25, 1]), i32(at[26, 0], at[26, 1]),
    )  # fmt: skip


def _walk(call, worker):  # type: ignore[no-untyped-def]
    """What one worker does of a token's step; `call` is the address of `CALL` numbers."""
    c = i64(call, CALL)
    w = _views(rows(c[0], c[1], 2))
    state, score = rows(c[2], c[3], 4), f32(c[4], c[5])
    cos, sin = f32(c[6], c[7]), f32(c[8], c[9])
    token, place, ahead = c[TOKEN], c[PLACE], c[WORKERS]
    groups, size = c[GROUPS], c[HEAD_SIZE]
    shape, depth, phase = (c[HEADS], groups, size), len(w.layers) - 1, 0
    for layer in range(depth + 1):
        row = w.layers[layer]
        for stage in range(4 if layer < depth else 1):
            at = stage * STAGE
            if draw(w.sync, phase) == 0:
                _ready(w, layer, stage, token)
                finish(w.sync, phase)
            wait(w.sync, phase, 1)
            head = row[Q] if layer == depth else -1
            _project(w, phase + 1, row[at + TASKS], row[at + TASKS_END], worker, c[WIDEST], head)
            phase += 2
            if stage == INTO_HEADS and layer < depth:
                g = draw(w.sync, phase)
                while g < groups:
                    for soon in range(g if g < ahead else g + ahead, min(g + ahead + 1, groups), ahead):
                        _expect(w, state, layer, soon, groups, size)
                    _heads(w, state, score, cos, sin, place, layer, g, worker, shape, c[OWN], c[PART_SIZE])
                    finish(w.sync, phase)
                    g = draw(w.sync, phase)
                wait(w.sync, phase, groups)
                phase += 1
            elif stage == INTO_HIDDEN:
                blocks = (row[HIDDEN] + BLOCK - 1) // BLOCK
                t = draw(w.sync, phase)
                while t < blocks:
                    _hidden(w, layer, t)
                    finish(w.sync, phase)
                    t = draw(w.sync, phase)
                wait(w.sync, phase, blocks)
                phase += 1


@cache
def walk() -> int:
    """The address of `_walk`, compiled when first asked for."""
    _walk.__qualname__ = f"_walk_{digest()}"  # as `launch.compile` does
    kind, options = types.void(types.int64, types.int64), {"error_model": "numpy"}
    try:
        return int(numba.cfunc(kind, cache=True, **options)(_walk).address)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return int(numba.cfunc(kind, **options)(_walk).address)


_making: list[threading.Thread | None] = []  # None: asked for once


def ready() -> bool:
    """Is the step compiled, now or by an earlier process? Where not, that begins in the background when asked again.

    Not at once: compilations wait for each other, and the model's own kernels for one token should come first.
    """
    if _step.parallel.signatures:
        return True
    kept = _step.parallel._cache.cache_path
    if kept and all(any(Path(kept).glob(f"decode.{name}_{digest()}*.nbi")) for name in ("_walk", "_step")):
        return True
    if _making == [None]:
        log.warning("the fused decoding step is compiled in the background, once; until then tokens come slower")
        thread = threading.Thread(target=make, name="fastsnn-compile")
        _making.append(thread)
        thread.start()
    elif not _making:
        _making.append(None)
    return False


def make() -> None:
    """Compile the step, or load it."""
    walk()
    _step.parallel.compile((types.int64,) * 3)


@intrinsic
def _call(typing: Any, address: Any, argument: Any, worker: Any) -> Any:
    """The function of two whole numbers at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64 = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [i64, i64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@Threaded
def _step(address, call, nw):  # type: ignore[no-untyped-def]
    for worker in prange(nw):
        _call(address, call, np.int64(worker))
