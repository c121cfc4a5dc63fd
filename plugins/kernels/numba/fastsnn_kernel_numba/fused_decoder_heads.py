"""Attention in the fused step: key/value heads and their query heads, over a cache or running sums."""

from __future__ import annotations

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.deterministic import _apply, _dot, _dots, _half_of, _norm_row, _update_state
from fastsnn_kernel_numba.fused_decoder_stages import (
    KEYS,
    _append_key_value,
    _attend_cache,
    _dequantise,
    _gate_row,
    _prefetch_floats,
    _rotate,
)
from fastsnn_kernel_numba.fused_decoder_work import _work
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import FLOAT, INT, STATE
from fastsnn_kernel_numba.numba_runtime import compile
from fastsnn_kernel_numba.spin_barrier import next_after, next_task, wait_for_tasks

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
def _heads(w, c, state, before, position, score, cos, sin, layer, g, queries, ahead, worker):  # type: ignore[no-untyped-def]
    """A key/value head and its query heads of a range `queries`: dequantise, norms, rotation, attention, to `mixed`.

    `before`: tokens of the stream that this step has read already, which `state` does not count yet. Where query heads
    of one key/value head are separate tasks, each appends the same key and value to the cache. Keys and values of the
    key/value head `ahead` (-1: of none) are asked for meanwhile, a share by each query.
    """
    groups, size, own = c.n_kv_heads, c.head_dim, w.heads
    share, half, n, row = c.n_heads // groups, _half_of(size), U(size), w.layers[layer]
    part, pa = w.folds, U(worker * c.fold_room)
    q = U(worker * c.head_room)  # places in `heads`: queries, key, value, rotated or mapped ones, gate, low rank
    k, val = q + U(share * size), q + U((share + 1) * size)
    turned, gate, low = q + U((share + 2) * size), q + U((2 * share + 3) * size), q + U((2 * share + 4) * size)
    begin, many = queries[0], queries[1] - queries[0]
    for i in range(3):  # q, k, v lie one after the other
        first, numbers, to = g * size, size, k if i == 1 else val
        if i == 0:
            first, numbers, to = (g * share + begin) * size, many * size, q + U(begin * size)
        _dequantise(w, row.q if i == 0 else row.k if i == 1 else row.v, first, numbers, own, to)
    for i in range(many + 1 if row.q_norm >= 0 else 0):
        h = begin + i if i < many else share
        a, at, eps = q + U(h) * n, row.q_norm if h < share else row.k_norm, row.q_eps if h < share else row.k_eps
        _norm_row(own, a, size, half, w.constants, U(at), True, eps, part, pa, own, a)
    branches = row.last_mixer - row.first_mixer
    for m in range(row.first_mixer, row.last_mixer):
        mix, s, key = w.mixers[m], state[m], turned + U(share) * n
        for i in range(many + 1):  # the key last
            h = begin + i if i < many else share
            a, o = q + U(h) * n, turned + U(h) * n
            if mix.feature >= 0:
                _apply(own, a, n, mix.feature, own, o)
            elif mix.rotary:
                _rotate(own, a, size, cos, sin, position, own, o)
            else:
                for j in range(n):
                    own[o + j] = own[a + j]
        scale = c.softmax_scale if mix.feature < 0 else mix.query_scale
        to = turned + U(begin * size)
        for i in range(U(many * size)):
            own[to + i] = own[to + i] * scale
        if mix.feature < 0:
            capacity, seen = s.capacity, s.seen + before
            keys = view(s.first, groups * capacity * size, FLOAT)
            values = view(s.second, groups * capacity * size, FLOAT)
            _append_key_value(keys, values, g, capacity, size, seen % capacity, own, key, val)
            held = seen + 1 if mix.window == 0 else min(seen + 1, mix.window)
            oldest, sa = (seen + 1 - held) % capacity, U(worker * (len(score) // c.workers))
            for h in range(begin, begin + many):
                a, to = turned + U(h) * n, U(((g * share + h) * branches + m - row.first_mixer) * size)
                cache = keys, values, g, capacity, size
                block = KEYS * size if ahead >= 0 else 0
                soon = ahead, block * h // share, block * (h + 1) // share
                _attend_cache(own, a, cache, soon, oldest, held, part, pa, score, sa, w.mixed, to)
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
        for h in range(begin, begin + many):
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
def _mix(c, places, streams, layer, phase, worker):  # type: ignore[no-untyped-def]
    """A phase of attention: the key/value heads of every stream, which take in its rows one after the other.

    From the last row on: the longest streams have their first rows there (`fused_decoder_batch.Batch.fill`).
    """
    score, groups, ahead = view(c.score_at, c.score_size, FLOAT), c.n_kv_heads, c.workers
    cos, sin = view(c.cos_at, c.angles_size, FLOAT), view(c.sin_at, c.angles_size, FLOAT)
    sync = view(places[0].sync_at, places[0].sync_size, INT)
    t, tasks, every = next_task(sync, phase), groups * c.rows, (0, c.n_heads // groups)
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
            _heads(
                _work(places[r]), c, state, before, s.position, score, cos, sin, layer, t % groups, every, -1, worker
            )
            r = s.next
        t = next_after(sync, phase, t, tasks)
    wait_for_tasks(sync, phase, tasks)


@compile
def _prefetch_sums(w, matrix, first, n):  # type: ignore[no-untyped-def]
    """Prefetch sums of the outputs first … first + n of a matrix, which other workers have written."""
    m = w.matrices[matrix]
    if m.group:
        _prefetch_floats(w.dots, m.sums + first, n)
    elif w.row[0].wide == 0:
        for part in range(m.parts):
            _prefetch_floats(w.sums, m.sums + part * m.outputs + first, n)


@compile
def _prefetch_head(w, c, layer, g):  # type: ignore[no-untyped-def]
    """Prefetch what a key/value head's queries, key and value are dequantised from."""
    row, share, size = w.layers[layer], c.n_heads // c.n_kv_heads, c.head_dim
    _prefetch_sums(w, row.q, g * share * size, share * size)
    _prefetch_sums(w, row.k, g * size, size)
    _prefetch_sums(w, row.v, g * size, size)


@compile
def _mix_single(w, c, stream, layer, phase, worker):  # type: ignore[no-untyped-def]
    """`_mix` of a single row, whose key/value heads may be several tasks each.

    Of two workers one begins with the first task and the other with the last: keys and values are read by one of them.
    """
    score, groups, both = view(c.score_at, c.score_size, FLOAT), c.n_kv_heads, c.workers == 2
    cos, sin = view(c.cos_at, c.angles_size, FLOAT), view(c.sin_at, c.angles_size, FLOAT)
    state, share, pieces = view(stream.state_at, stream.state_size, STATE), c.n_heads // groups, c.pieces
    row, drawn, tasks, mine = w.layers[layer], next_task(w.sync, phase), groups * c.pieces, 0
    plain = True  # softmax alone
    for m in range(row.first_mixer, row.last_mixer):
        plain &= w.mixers[m].feature < 0
    while drawn < tasks:
        back = both and worker > 0
        t = tasks - 1 - mine if back else mine if both else drawn
        g, piece, ahead = t // pieces, t % pieces, -1
        new = mine == 0 or piece == (pieces - 1 if back else 0)
        if mine == 0:
            _prefetch_head(w, c, layer, g)
        if new and (mine == 0 or not both or not plain):
            _prefetch_state(w, state, layer, g, groups, c.head_dim)
        if both:
            ahead = g - 1 if back else g + 1
            ahead = ahead if 0 <= ahead < groups and drawn + pieces < tasks else -1
            if ahead >= 0 and new:
                _prefetch_head(w, c, layer, ahead)
        queries = share * piece // pieces, share * (piece + 1) // pieces
        _heads(w, c, state, 0, stream.position, score, cos, sin, layer, g, queries, ahead, worker)
        mine += 1
        drawn = next_after(w.sync, phase, drawn, tasks)
    wait_for_tasks(w.sync, phase, tasks)
