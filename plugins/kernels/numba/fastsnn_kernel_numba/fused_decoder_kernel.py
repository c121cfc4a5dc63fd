"""One token of one stream or several through a whole decoder in one parallel region: `_walk` is what a worker does.

A block has four projections (q, k and v together · output · gate and up together · down), and each of them the same
stages: whoever draws it does the prologue (residual, norm, quantise to events); tasks of weight rows; then, behind the
first and the third, heads or hidden channels. The head of the network is one projection more.
`fastsnn_kernel_numba.spin_barrier` hands out the tasks. Projections are split over events where they are narrow, and
the parts added by whoever reads them; over columns where they are wide. With several rows (streams), every row has
arrays of its own and goes through the same stages; their projections are `fastsnn_kernel_numba.fused_decoder_rows`.
Everything is written so that each piece occurs once (compiling took a minute before).
"""

from __future__ import annotations

import numpy as np

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.deterministic import F, _apply, _dot, _dots, _half_of, _norm_row, _update_state
from fastsnn_kernel_numba.fused_decoder_four_bits import _accumulate_four_bits, _embed_four_bits
from fastsnn_kernel_numba.fused_decoder_gates import (
    _multiply_up,
    _narrow_counts,
    _open_gates,
    _shut_gates,
    _up_of_open_gates,
)
from fastsnn_kernel_numba.fused_decoder_rows import _goes_dense, _project_rows
from fastsnn_kernel_numba.fused_decoder_stages import (
    KEYS,
    _accumulate_task,
    _append_key_value,
    _attend_cache,
    _dequantise,
    _dequantise_task,
    _gate_row,
    _list_events,
    _prefetch_floats,
    _quantise_row,
    _rotate,
)
from fastsnn_kernel_numba.fused_decoder_ternary import TERNARY_GROUP, _accumulate_ternary
from fastsnn_kernel_numba.fused_decoder_work import _work
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import CALL, FLOAT, INT, PLACES, STATE, STREAM
from fastsnn_kernel_numba.numba_runtime import compile
from fastsnn_kernel_numba.spin_barrier import choice_of_phase, finish_task, keep_choice, next_task, wait_for_tasks

INTO_HEADS, INTO_OUT, INTO_HIDDEN, INTO_DOWN, STAGES = range(5)  # projections of a block, and how many
BLOCK = 512  # hidden channels per task
AHEAD = 1 << 13  # floats of a head's state that are prefetched, 32 KiB


@compile
def _prefetch_state(w, state, layer, g, groups, size):  # type: ignore[no-untyped-def]
    """Prefetch the keys and values, or the running sums, of a head: the hardware prefetcher cannot predict them."""
    for m in range(w.layers[layer].first_mixer, w.layers[layer].last_mixer):
        s = state[m]
        if w.mixers[m].feature < 0:
            held = min(-(-(s.seen + 1) // KEYS) * KEYS, s.capacity, AHEAD // size)  # keys lie in blocks
            values = min(s.seen + 1, held)
            _prefetch_floats(view(s.first, groups * s.capacity * size, FLOAT), g * s.capacity * size, held * size)
            _prefetch_floats(view(s.second, groups * s.capacity * size, FLOAT), g * s.capacity * size, values * size)
        else:
            sums = view(s.first, groups * size * size, FLOAT)
            _prefetch_floats(sums, g * size * size, min(size * size, AHEAD))


@compile
def _heads(w, c, state, before, position, score, cos, sin, layer, g, worker):  # type: ignore[no-untyped-def]
    """A key/value head and its query heads: dequantise, norms, rotation, attention, into `mixed`.

    `before`: tokens of the stream that this step has read already, which `state` does not count yet.
    """
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
        _norm_row(own, a, size, half, w.constants, U(at), True, eps, part, pa, own, a)
    branches = row.last_mixer - row.first_mixer
    for m in range(row.first_mixer, row.last_mixer):
        mix, s, key = w.mixers[m], state[m], turned + U(share) * n
        for h in range(share + 1):  # the key last
            a, o = q + U(h) * n, turned + U(h) * n
            if mix.feature >= 0:
                _apply(own, a, n, mix.feature, own, o)
            elif mix.rotary:
                _rotate(own, a, size, cos, sin, position, own, o)
            else:
                for i in range(n):
                    own[o + i] = own[a + i]
        scale = c.softmax_scale if mix.feature < 0 else mix.query_scale
        for i in range(U(share * size)):
            own[turned + i] = own[turned + i] * scale
        if mix.feature < 0:
            capacity, seen = s.capacity, s.seen + before
            keys = view(s.first, groups * capacity * size, FLOAT)
            values = view(s.second, groups * capacity * size, FLOAT)
            _append_key_value(keys, values, g, capacity, size, seen % capacity, own, key, val)
            held = seen + 1 if mix.window == 0 else min(seen + 1, mix.window)
            oldest, sa = (seen + 1 - held) % capacity, U(worker * (len(score) // c.workers))
            for h in range(share):
                a, to = turned + U(h) * n, U(((g * share + h) * branches + m - row.first_mixer) * size)
                cache = keys, values, g, capacity, size
                _attend_cache(own, a, cache, oldest, held, part, pa, score, sa, w.mixed, to)
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
                _norm_row(w.mixed, to, size, half, w.constants, U(mix.norm), True, eps, part, pa, w.mixed, to)
            else:
                norm = _dot(own, a, z, zo, size, half, part, pa) + mix.eps
                for i in range(n):
                    w.mixed[to + i] = w.mixed[to + i] / norm


@compile
def _embed(w, token, width):  # type: ignore[no-untyped-def]
    """The residual stream begins as the token's row."""
    row, table = U(token * width), w.stages[0].add
    if table >= 0:
        _embed_four_bits(w, table, token)
    elif len(w.codes):
        for i in range(U(width)):
            w.x[i] = F(w.codes[row + i]) * w.table[token]
    else:
        for i in range(U(width)):
            w.x[i] = w.table[row + i]


@compile
def _prologue(w, index, token, pa):  # type: ignore[no-untyped-def]
    """Projection prologue: residual add, RMSNorm, quantise to counts; `pa` is a place in folds."""
    stage, width = w.stages[index], len(w.x)
    if index == 0:
        _embed(w, token, width)
    elif stage.add >= 0:
        _dequantise(w, stage.add, 0, width, w.y, U(0))
        for i in range(U(width)):
            w.x[i] = w.x[i] + w.y[i]
    if stage.norm >= 0:
        at, size = index % STAGES, stage.size
        row = w.mixed if at == INTO_OUT else w.y if at == INTO_DOWN else w.x
        half, norm, eps = _half_of(size), U(stage.norm), stage.norm_eps
        _norm_row(row, U(0), size, half, w.constants, norm, True, eps, w.folds, pa, w.y, U(0))
    elif index % STAGES == INTO_OUT:
        for i in range(U(stage.size)):
            w.y[i] = w.mixed[i]
    _quantise_row(w, stage.size, stage.site, pa)
    if index % STAGES == INTO_HIDDEN and w.layers[index // STAGES].up_task >= 0:
        _narrow_counts(w, stage.size)


@compile
def _projection_phase(w, phase, first, last, worker, widest, head):  # type: ignore[no-untyped-def]
    """A phase of projection tasks; those of the network's head (a matrix, else -1) become logits at once."""
    t = next_task(w.sync, phase)
    while t < last - first:
        group = w.matrices[w.tasks[first + t].matrix].group
        if group > 0:
            _accumulate_four_bits(w, first + t, worker)
        elif group == TERNARY_GROUP:
            _accumulate_ternary(w, first + t, worker)
        else:
            _accumulate_task(w, first + t, worker, widest)
        if head >= 0:
            task = w.tasks[first + t]
            _dequantise_task(w, head, task.column, task.columns)
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
    _shut_gates(w, layer, at, n)
    _multiply_up(w, layer, first, n)


@compile
def _few_open(w, c, row, blocks):  # type: ignore[no-untyped-def]
    """Do so few gates stand open that `up` is computed behind those only?"""
    up, opened = w.matrices[row.up], 0
    for t in range(blocks):
        opened += w.opens[t]
    few = opened * up.inputs * c.open_cost < w.row[0].events * up.outputs
    return few and w.row[0].small != 0 and w.threshold[0] <= row.up_limit


@compile
def _gate_first(w, c, layer, last_task, phase, worker):  # type: ignore[no-untyped-def]
    """Behind the gates of a row: how many are open decides whether `up` is computed behind those only; next phase."""
    row = w.layers[layer]
    blocks = (row.hidden + BLOCK - 1) // BLOCK
    t = next_task(w.sync, phase)
    while t < blocks:
        w.opens[t] = _open_gates(w, layer, t * BLOCK, min(BLOCK, row.hidden - t * BLOCK))
        if finish_task(w.sync, phase) == blocks - 1:
            keep_choice(w.sync, phase, np.int64(_few_open(w, c, row, blocks)))
        t = next_task(w.sync, phase)
    few = choice_of_phase(w.sync, phase, blocks)
    phase += 1
    if not few:
        _projection_phase(w, phase, row.up_task, last_task, worker, c.widest, -1)
        phase += 1
    t = next_task(w.sync, phase)
    while t < blocks:
        first, n = t * BLOCK, min(BLOCK, row.hidden - t * BLOCK)
        if t == 0:
            w.ways[2 * layer + (0 if few else 1)] += 1
        if few:
            _up_of_open_gates(w, layer, first, n)
        else:
            _multiply_up(w, layer, first, n)
        finish_task(w.sync, phase)
        t = next_task(w.sync, phase)
    wait_for_tasks(w.sync, phase, blocks)
    return phase + 1


@compile
def _mix(c, places, streams, layer, phase, worker):  # type: ignore[no-untyped-def]
    """A phase of attention: the key/value heads of every stream, which take in its rows one after the other.

    From the last row on: the longest streams have their first rows there (`fused_decoder_batch.Batch.fill`).
    """
    score, groups, ahead = view(c.score_at, c.score_size, FLOAT), c.n_kv_heads, c.workers
    cos, sin = view(c.cos_at, c.angles_size, FLOAT), view(c.sin_at, c.angles_size, FLOAT)
    sync = view(places[0].sync_at, places[0].sync_size, INT)
    t, tasks = next_task(sync, phase), groups * c.rows
    while t < tasks:
        for soon in range(t if t < ahead else t + ahead, min(t + ahead + 1, tasks), ahead):
            r = c.rows - 1 - soon // groups
            if streams[r].run:
                state = view(streams[r].state_at, streams[r].state_size, STATE)
                _prefetch_state(_work(places[r]), state, layer, soon % groups, groups, c.head_dim)
        r = c.rows - 1 - t // groups
        for before in range(streams[r].run):
            s = streams[r]
            state = view(s.state_at, s.state_size, STATE)
            _heads(_work(places[r]), c, state, before, s.position, score, cos, sin, layer, t % groups, worker)
            r = s.next
        finish_task(sync, phase)
        t = next_task(sync, phase)
    wait_for_tasks(sync, phase, tasks)


def _walk(call, worker):  # type: ignore[no-untyped-def]
    """What one worker does of a step; `call` is the address of a record `CALL`."""
    c = view(call, 1, CALL)[0]
    rows, alone, phase = c.rows, c.rows == 1, 0
    places, streams = view(c.places, rows, PLACES), view(c.streams, rows, STREAM)
    w = _work(places[0])
    depth, pa = len(w.layers) - 1, U(worker * c.fold_room)
    for index in range(len(w.stages)):
        layer, stage = index // STAGES, index % STAGES
        tasks, row = w.stages[index], w.layers[layer]
        if layer == depth:
            rows = c.wanted
            if rows == 0:
                break
        r = next_task(w.sync, phase)
        while r < rows:
            own = _work(places[r])
            _prologue(own, index, streams[r].token, pa)
            if not _goes_dense(places[r], tasks.size, tasks.four, rows, c):
                _list_events(own.counts, tasks.size, own.index, own.count)
            finish_task(w.sync, phase)
            r = next_task(w.sync, phase)
        wait_for_tasks(w.sync, phase, rows)
        head = row.q if layer == depth else -1
        if alone and stage == INTO_HIDDEN and row.up_task >= 0:
            _projection_phase(w, phase + 1, tasks.first_task, row.up_task, worker, c.widest, -1)
            phase = _gate_first(w, c, layer, tasks.last_task, phase + 2, worker)
            continue
        if alone:
            _projection_phase(w, phase + 1, tasks.first_task, tasks.last_task, worker, c.widest, head)
        else:
            _project_rows(w, c, places, rows, phase + 1, tasks, worker, head)
            phase += 1
        phase += 2
        if stage == INTO_HEADS and layer < depth:
            _mix(c, places, streams, layer, phase, worker)
            phase += 1
        elif stage == INTO_HIDDEN:
            blocks = (row.hidden + BLOCK - 1) // BLOCK
            t = next_task(w.sync, phase)
            while t < blocks * rows:
                _activate(_work(places[t // blocks]), layer, t % blocks)
                finish_task(w.sync, phase)
                t = next_task(w.sync, phase)
            wait_for_tasks(w.sync, phase, blocks * rows)
            phase += 1
