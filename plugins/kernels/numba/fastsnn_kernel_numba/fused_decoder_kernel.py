"""One token through a whole decoder in one parallel region: `_walk` is what every worker does.

A block has four projections (q, k and v together · output · gate and up together · down), and each of them the same
stages: whoever draws it does the prologue (residual, norm, quantise to events); tasks of weight rows; then, behind the
first and the third, heads or hidden channels. The head of the network is one projection more.
`fastsnn_kernel_numba.spin_barrier` hands out the tasks. Projections are split over events where they are narrow, and
the parts added by whoever reads them; over columns where they are wide.

The walk is compiled by itself and the region calls it by its address: a caller that holds its code would have it all
optimised again, and everything here is written so that each piece occurs once (compiling took a minute before).
"""

from __future__ import annotations

import logging
import threading
import time
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.deterministic import F, _apply, _dot, _dots, _half_of, _norm, _update_state
from fastsnn_kernel_numba.fused_decoder_stages import (
    KEYS,
    _accumulate_task,
    _append_key_value,
    _attend_cache,
    _dequantise,
    _gate_row,
    _prefetch_floats,
    _quantise_row,
    _rotate,
)
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import (
    CALL,
    FLOAT,
    INT,
    INT8,
    INT16,
    INT32,
    LAYER,
    MATRIX,
    MIXER,
    PLACES,
    ROW,
    SITE,
    STAGE,
    STATE,
    TASK,
)
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, digest
from fastsnn_kernel_numba.spin_barrier import finish_task, next_task, wait_for_tasks

log = logging.getLogger("fastsnn")
INTO_HEADS, INTO_OUT, INTO_HIDDEN, INTO_DOWN, STAGES = range(5)  # projections of a block, and how many
BLOCK = 512  # hidden channels per task
AHEAD = 1 << 13  # floats of a head's state that are prefetched, 32 KiB


class Work(NamedTuple):
    """All arrays of a fused step: tables, packed constants, scratch buffers. See `layout.ARRAYS`."""

    sync: Any
    layers: Any
    stages: Any
    matrices: Any
    tasks: Any
    sites: Any
    mixers: Any
    constants: Any
    codes: Any
    table: Any
    row: Any
    threshold: Any
    x: Any
    y: Any
    z: Any
    mixed: Any
    counts: Any
    index: Any
    count: Any
    acc: Any
    sums: Any
    sums_64: Any
    heads: Any
    folds: Any
    logits: Any
    gates: Any


@compile
def _work(p):  # type: ignore[no-untyped-def]
    """The arrays at the places of a record `PLACES`."""
    return Work(
        sync=view(p.sync_at, p.sync_size, INT),
        layers=view(p.layers_at, p.layers_size, LAYER),
        stages=view(p.stages_at, p.stages_size, STAGE),
        matrices=view(p.matrices_at, p.matrices_size, MATRIX),
        tasks=view(p.tasks_at, p.tasks_size, TASK),
        sites=view(p.sites_at, p.sites_size, SITE),
        mixers=view(p.mixers_at, p.mixers_size, MIXER),
        constants=view(p.constants_at, p.constants_size, FLOAT),
        codes=view(p.codes_at, p.codes_size, INT8),
        table=view(p.table_at, p.table_size, FLOAT),
        row=view(p.row_at, p.row_size, ROW),
        threshold=view(p.threshold_at, p.threshold_size, FLOAT),
        x=view(p.x_at, p.x_size, FLOAT),
        y=view(p.y_at, p.y_size, FLOAT),
        z=view(p.z_at, p.z_size, FLOAT),
        mixed=view(p.mixed_at, p.mixed_size, FLOAT),
        counts=view(p.counts_at, p.counts_size, INT32),
        index=view(p.index_at, p.index_size, INT32),
        count=view(p.count_at, p.count_size, INT32),
        acc=view(p.acc_at, p.acc_size, INT16),
        sums=view(p.sums_at, p.sums_size, INT32),
        sums_64=view(p.sums_64_at, p.sums_64_size, INT),
        heads=view(p.heads_at, p.heads_size, FLOAT),
        folds=view(p.folds_at, p.folds_size, FLOAT),
        logits=view(p.logits_at, p.logits_size, FLOAT),
        gates=view(p.gates_at, p.gates_size, INT32),
    )


@compile
def _prefetch_state(w, state, layer, g, groups, size):  # type: ignore[no-untyped-def]
    """Prefetch the keys and values, or the running sums, of a head: the hardware prefetcher cannot predict them."""
    for m in range(w.layers[layer].first_mixer, w.layers[layer].last_mixer):
        s = state[m]
        if w.mixers[m].feature < 0:
            held = min(-(-(s.seen + 1) // KEYS) * KEYS, s.capacity, AHEAD // size)
            _prefetch_floats(view(s.first, groups * s.capacity * size, FLOAT), g * s.capacity * size, held * size)
            _prefetch_floats(view(s.second, groups * s.capacity * size, FLOAT), g * s.capacity * size, held * size)
        else:
            sums = view(s.first, groups * size * size, FLOAT)
            _prefetch_floats(sums, g * size * size, min(size * size, AHEAD))


@compile
def _heads(w, c, state, score, cos, sin, layer, g, worker):  # type: ignore[no-untyped-def]
    """A key/value head and its query heads: dequantise, norms, rotation, attention, into `mixed`."""
    groups, size, own = c.n_kv_heads, c.head_dim, w.heads
    share, half, n, row = c.n_heads // groups, _half_of(size), U(size), w.layers[layer]
    part, pa = w.folds, U(worker * c.fold_room)
    q = U(worker * c.head_room)  # places in `heads`: queries, key, value, rotated or mapped ones, gate, low rank
    k, val = q + U(share * size), q + U((share + 1) * size)
    turned, gate, low = q + U((share + 2) * size), q + U((2 * share + 3) * size), q + U((2 * share + 4) * size)
    for i in range(3):  # q, k, v lie one after the other
        numbers, to = (share * size, q) if i == 0 else (size, k if i == 1 else val)
        _dequantise(w, row.q if i == 0 else row.k if i == 1 else row.v, g * numbers, numbers, own, to)
    for h in range(share + 1 if row.q_norm >= 0 else 0):
        a, at, eps = q + U(h) * n, row.q_norm if h < share else row.k_norm, row.q_eps if h < share else row.k_eps
        _norm(own, a, size, half, w.constants, U(at), True, eps, part, pa, own, a)
    branches = row.last_mixer - row.first_mixer
    for m in range(row.first_mixer, row.last_mixer):
        mix, s, key = w.mixers[m], state[m], turned + U(share) * n
        for h in range(share + 1):  # the key last
            a, o = q + U(h) * n, turned + U(h) * n
            if mix.feature >= 0:
                _apply(own, a, n, mix.feature, own, o)
            elif mix.rotary:
                _rotate(own, a, size, cos, sin, c.position, own, o)
            else:
                for i in range(n):
                    own[o + i] = own[a + i]
        scale = c.softmax_scale if mix.feature < 0 else mix.query_scale
        for i in range(U(share * size)):
            own[turned + i] = own[turned + i] * scale
        if mix.feature < 0:
            capacity, seen = s.capacity, s.seen
            keys = view(s.first, groups * capacity * size, FLOAT)
            values = view(s.second, groups * capacity * size, FLOAT)
            _append_key_value(keys, values, g, capacity, size, seen % capacity, own, key, val)
            held = seen + 1 if mix.window == 0 else min(seen + 1, mix.window)
            oldest, sa = (seen + 1 - held) % capacity, U(worker * (len(score) // c.workers))
            for h in range(share):
                a, to = turned + U(h) * n, U(((g * share + h) * branches + m - row.first_mixer) * size)
                _attend_cache(own, a, keys, values, g, capacity, size, oldest, held, part, pa, score, sa, w.mixed, to)
            continue
        sums, z = view(s.first, groups * size * size, FLOAT), view(s.second, groups * size, FLOAT)
        so, zo = U(g * size * size), U(g * size)
        if mix.gate_down >= 0:
            _gate_row(w, m, g * size, size, low, U(worker * size), gate)
        elif mix.fades:
            for i in range(n):
                own[gate + i] = mix.keep
        gated = mix.gate_down >= 0 or mix.fades != 0
        _update_state(own, key, own, val, gated, own, gate, sums, so, z, zo, size, n)
        for h in range(share):
            a, to = turned + U(h) * n, U(((g * share + h) * branches + m - row.first_mixer) * size)
            _dots(own, a, sums, so, size, size, size, half, part, pa, w.mixed, to)
            if mix.norm >= 0:
                eps = mix.norm_eps
                _norm(w.mixed, to, size, half, w.constants, U(mix.norm), True, eps, part, pa, w.mixed, to)
            else:
                norm = _dot(own, a, z, zo, size, half, part, pa) + mix.eps
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
def _prologue(w, index, token):  # type: ignore[no-untyped-def]
    """Projection prologue: residual add, RMSNorm, quantise to counts, build the event list."""
    stage, width = w.stages[index], len(w.x)
    if index == 0:
        _embed(w, token, width)
    elif stage.add >= 0:
        _dequantise(w, stage.add, 0, width, w.y, U(0))
        for i in range(U(width)):
            w.x[i] = w.x[i] + w.y[i]
    if stage.norm >= 0:
        half, norm, eps = _half_of(width), U(stage.norm), stage.norm_eps
        _norm(w.x, U(0), width, half, w.constants, norm, True, eps, w.folds, U(0), w.y, U(0))
    elif index % STAGES == INTO_OUT:
        for i in range(U(stage.size)):
            w.y[i] = w.mixed[i]
    _quantise_row(w, stage.size, stage.site)


@compile
def _project(w, phase, first, last, worker, widest, head):  # type: ignore[no-untyped-def]
    """A phase of projection tasks; those of the network's head (a matrix, else -1) become logits at once."""
    t = next_task(w.sync, phase)
    while t < last - first:
        _accumulate_task(w, first + t, worker, widest)
        if head >= 0:
            task = w.tasks[first + t]
            _dequantise(w, head, task.column, task.columns, w.logits, U(task.column))
        finish_task(w.sync, phase)
        t = next_task(w.sync, phase)
    wait_for_tasks(w.sync, phase, last - first)


@compile
def _activate(w, layer, t):  # type: ignore[no-untyped-def]
    """A block of hidden channels: act(gate) · up, or act(up)."""
    row, first = w.layers[layer], t * BLOCK
    n, at = min(BLOCK, row.hidden - first), U(first)
    _dequantise(w, row.up if row.gate < 0 else row.gate, first, n, w.z, at)
    _apply(w.z, at, U(n), row.activation, w.y, at)
    if row.gate < 0:
        return
    _dequantise(w, row.up, first, n, w.z, at)
    for i in range(U(n)):
        w.y[at + U(i)] = w.y[at + U(i)] * w.z[at + U(i)]


def _walk(call, worker):  # type: ignore[no-untyped-def]
    """What one worker does of a token's step; `call` is the address of a record `CALL`."""
    c = view(call, 1, CALL)[0]
    w = _work(view(c.places, 1, PLACES)[0])
    state, score = view(c.state_at, c.state_size, STATE), view(c.score_at, c.score_size, FLOAT)
    cos, sin = view(c.cos_at, c.angles_size, FLOAT), view(c.sin_at, c.angles_size, FLOAT)
    ahead, groups, depth, phase = c.workers, c.n_kv_heads, len(w.layers) - 1, 0
    for index in range(len(w.stages)):
        layer, stage = index // STAGES, index % STAGES
        tasks, row = w.stages[index], w.layers[layer]
        if next_task(w.sync, phase) == 0:
            _prologue(w, index, c.token)
            finish_task(w.sync, phase)
        wait_for_tasks(w.sync, phase, 1)
        head = row.q if layer == depth else -1
        _project(w, phase + 1, tasks.first_task, tasks.last_task, worker, c.widest, head)
        phase += 2
        if stage == INTO_HEADS and layer < depth:
            g = next_task(w.sync, phase)
            while g < groups:
                for soon in range(g if g < ahead else g + ahead, min(g + ahead + 1, groups), ahead):
                    _prefetch_state(w, state, layer, soon, groups, c.head_dim)
                _heads(w, c, state, score, cos, sin, layer, g, worker)
                finish_task(w.sync, phase)
                g = next_task(w.sync, phase)
            wait_for_tasks(w.sync, phase, groups)
            phase += 1
        elif stage == INTO_HIDDEN:
            blocks = (row.hidden + BLOCK - 1) // BLOCK
            t = next_task(w.sync, phase)
            while t < blocks:
                _activate(w, layer, t)
                finish_task(w.sync, phase)
                t = next_task(w.sync, phase)
            wait_for_tasks(w.sync, phase, blocks)
            phase += 1


@cache
def walk() -> int:
    """The address of `_walk`, compiled when first asked for."""
    _walk.__qualname__ = f"_walk_{digest(_walk)}"  # as `numba_runtime.compile` does
    kind, cfunc = types.void(types.int64, types.int64), partial(numba.cfunc, error_model="numpy")
    try:
        address = cfunc(kind, cache=True)(_walk).address
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        address = cfunc(kind)(_walk).address
    return int(address or 0)


RETRY = 60.0  # seconds after a compilation that failed until the next one begins
_making: list[threading.Thread | None] = []  # None: asked for once; then the thread
_failed: list[tuple[float, str]] = []  # when the latest compilation failed, and why


def ready() -> bool:
    """Is the step compiled, now or by an earlier process? Where not, that begins in the background when asked again.

    Not at once: compilations wait for each other, and the model's own kernels for one token should come first. One that
    has failed is tried again after `RETRY` seconds; until then `failure` says why.
    """
    if _step.parallel.signatures:
        return True
    kept = _step.parallel._cache.cache_path
    if kept and all(any(Path(kept).glob(f"*.{name}*.nbi")) for name in names()):
        return True
    if not _making:
        _making.append(None)
        return False
    thread = _making[-1]
    if thread is None or (not thread.is_alive() and (not _failed or time.monotonic() - _failed[-1][0] > RETRY)):
        log.warning("the fused decoding step is compiled in the background, once; until then tokens come slower")
        thread = threading.Thread(target=_make_or_say, name="fastsnn-compile")
        _making[:] = [None, thread]
        thread.start()
    return False


def names() -> tuple[str, ...]:
    """Names under which Numba keeps the two functions on disk."""
    return f"_walk_{digest(_walk)}", _step.parallel.py_func.__qualname__


def failure() -> str:
    """Why the latest compilation in the background failed; "" where none did."""
    return _failed[-1][1] if _failed else ""


def make() -> None:
    """Compile the step, or load it."""
    walk()
    _step.parallel.compile((types.int64,) * 3)


def _make_or_say() -> None:
    """`make`, with what goes wrong kept for `failure`."""
    try:
        make()
    except Exception as error:
        _failed[:] = [(time.monotonic(), f"{type(error).__name__}: {error}")]
        log.warning("compiling the fused decoding step failed (%s); tokens go through the model's own layers", error)
    else:
        _failed.clear()


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
