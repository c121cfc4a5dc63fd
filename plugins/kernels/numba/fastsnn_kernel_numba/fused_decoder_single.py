"""One token of one stream through a whole decoder: what a worker does where there is a single row.

A block has five phases: q, k and v together · heads · output · hidden channels · down; six where reading weights takes
longest, so that each worker reads whole rows of the gates (and of `up`) before the hidden channels. In front of every
projection each worker does the prologue (residual, norm, quantise to events) for itself: that takes as long as waiting
for another one to do it, and nothing has to travel between cores before the products begin. Results are kept in turn:

    places 0 … 3            what the projection of a stage (its number modulo 4) left: sums, the residual stream in
                            front of it, V, what was wrong; sums of stages 0 and 2 share their memory, as 1 and 3 do,
                            and so do residual streams of 0 and 1, and of 2 and 3
    places 4 + 4 w + 0 … 3  the same sums, with the rows that worker w computes for itself

Whoever draws the first task of a projection hands on V and the residual stream, `_publish`. A prologue reads what the
stage before left, which is written again two stages later: a worker that was held up, and may have read some of both,
finds no task of its stage left (`fastsnn_kernel_numba.spin_barrier`).
"""

from __future__ import annotations

from fastsnn_kernel_numba.deterministic import _apply
from fastsnn_kernel_numba.fused_decoder_four_bits import _accumulate_four_bits
from fastsnn_kernel_numba.fused_decoder_gates import _multiply_up, _open_gates, _shut_gates, _up_of_open_gates
from fastsnn_kernel_numba.fused_decoder_heads import _mix_single
from fastsnn_kernel_numba.fused_decoder_prologue import INTO_HEADS, INTO_HIDDEN, STAGES, _prefetch_after, _prologue
from fastsnn_kernel_numba.fused_decoder_stages import (
    STRETCH,
    _accumulate_task,
    _dequantise,
    _dequantise_task,
    _list_events,
    _list_few,
)
from fastsnn_kernel_numba.fused_decoder_ternary import TERNARY_GROUP, _accumulate_ternary
from fastsnn_kernel_numba.fused_decoder_work import _work
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.numba_runtime import compile
from fastsnn_kernel_numba.spin_barrier import atomic_add, next_after, next_task, wait_for_tasks

BLOCK = 512  # hidden channels per task, where they are a phase of their own


@compile
def _publish(own, out, index):  # type: ignore[no-untyped-def]
    """Hand on what a worker's prologue found."""
    out.threshold[0], out.row[0].wide = own.threshold[0], own.row[0].wide
    out.row[0].problem, out.row[0].site = own.row[0].problem, own.row[0].site
    if index % STAGES == INTO_HEADS or index % STAGES == INTO_HIDDEN:
        for i in range(U(len(own.x))):
            out.x[i] = own.x[i]


@compile
def _projection_phase(own, out, index, last_task, phase, worker, widest, head):  # type: ignore[no-untyped-def]
    """A phase of projection tasks; those of the network's head (a matrix, else -1) become logits at once.

    True if a task was left for this worker, whose own rows are as they should be then.
    """
    first, drawn = own.stages[index].first_task, False
    t = next_task(own.sync, phase)
    while t < last_task - first:
        drawn = True
        if t == 0:
            _publish(own, out, index)
        group = own.matrices[own.tasks[first + t].matrix].group
        if group > 0:
            _accumulate_four_bits(own, first + t, worker)
        elif group == TERNARY_GROUP:
            _accumulate_ternary(own, first + t, worker)
        else:
            _accumulate_task(own, first + t, worker, widest)
        if head >= 0:
            task = own.tasks[first + t]
            _dequantise_task(own, head, task.column, task.columns)
        t = next_after(own.sync, phase, t, last_task - first)
    _prefetch_after(own, index)
    wait_for_tasks(own.sync, phase, last_task - first)
    return drawn


@compile
def _activate(w, layer, first, n):  # type: ignore[no-untyped-def]
    """Hidden channels first … first + n: act(gate) · up, or act(up)."""
    row, at = w.layers[layer], U(first)
    _dequantise(w, row.up if row.gate < 0 else row.gate, first, n, w.z, at)
    _apply(w.z, at, U(n), row.activation, w.hidden, at)
    if row.gate < 0:
        return
    _shut_gates(w, layer, at, n)
    _multiply_up(w, layer, first, n)


@compile
def _activate_phase(w, layer, phase):  # type: ignore[no-untyped-def]
    """A phase of hidden channels of a single row."""
    hidden = w.layers[layer].hidden
    blocks = (hidden + BLOCK - 1) // BLOCK
    t = next_task(w.sync, phase)
    while t < blocks:
        _activate(w, layer, t * BLOCK, min(BLOCK, hidden - t * BLOCK))
        t = next_after(w.sync, phase, t, blocks)
    wait_for_tasks(w.sync, phase, blocks)


@compile
def _few_open(w, row, opened, n, cost):  # type: ignore[no-untyped-def]
    """Do so few of `n` gates stand open that `up` is computed behind those only?"""
    few = opened * w.matrices[row.up].inputs * cost < w.row[0].events * n
    return few and w.row[0].small != 0 and w.threshold[0] <= row.up_limit


@compile
def _gated(w, c, layer, task, first, n, worker):  # type: ignore[no-untyped-def]
    """Hidden channels first … first + n behind the sums of their gates: how many of those are open decides whether `up`
    is computed behind them only, or whole, by its `task`."""
    opened = _open_gates(w, layer, first, n)
    few = _few_open(w, w.layers[layer], opened, n, c.open_cost)
    if few:
        _up_of_open_gates(w, layer, first, n)
    else:
        _accumulate_task(w, task, worker, c.widest)
        _multiply_up(w, layer, first, n)
    atomic_add(w.ways, 2 * layer + (0 if few else 1), 1)


@compile
def _hidden_phase(own, out, c, index, phase, worker):  # type: ignore[no-untyped-def]
    """A phase whose tasks are blocks of hidden channels, from the spikes to behind the activation; whether one was left
    for this worker."""
    layer, first_task = index // STAGES, own.stages[index].first_task
    row = own.layers[layer]
    blocks = (row.hidden + row.block - 1) // row.block
    each, drawn = (own.stages[index].last_task - first_task) // blocks, False
    _prefetch_after(own, index)
    t = next_task(own.sync, phase)
    while t < blocks:
        drawn = True
        if t == 0:
            _publish(own, out, index)
        first, task = t * row.block, first_task + each * t
        n = min(row.block, row.hidden - first)
        _accumulate_task(own, task, worker, c.widest)
        if row.up_rows:
            _gated(own, c, layer, task + 1, first, n, worker)
        else:
            if each == 2:
                _accumulate_task(own, task + 1, worker, c.widest)
            _activate(own, layer, first, n)
        t = next_after(own.sync, phase, t, blocks)
    wait_for_tasks(own.sync, phase, blocks)
    return drawn


@compile
def _gates_phase(own, c, layer, phase, worker):  # type: ignore[no-untyped-def]
    """A phase of blocks of hidden channels whose gates have their sums."""
    row = own.layers[layer]
    blocks = (row.hidden + row.block - 1) // row.block
    t = next_task(own.sync, phase)
    while t < blocks:
        first = t * row.block
        _gated(own, c, layer, row.up_task + t, first, min(row.block, row.hidden - first), worker)
        t = next_after(own.sync, phase, t, blocks)
    wait_for_tasks(own.sync, phase, blocks)


@compile
def _walk_single(c, places, stream, worker):  # type: ignore[no-untyped-def]
    """What one worker does of a step of one row."""
    w, phase, pa = _work(places[0]), 0, U(worker * c.fold_room)
    depth, own_x, before = len(w.layers) - 1, False, w  # own_x: is a worker's own residual stream as it should be?
    for index in range(len(w.stages)):
        layer, stage = index // STAGES, index % STAGES
        own, out, row = _work(places[STAGES * (1 + worker) + stage]), _work(places[stage]), w.layers[layer]
        _prologue(own, before, own.x if own_x else before.x, index, stream.token, pa)
        size = own.stages[index].size
        if own.row[0].events * STRETCH < size:
            _list_few(own.counts, size, own.index, own.count)
        else:
            _list_events(own.counts, size, own.index, own.count)
        hidden = stage == INTO_HIDDEN and row.block > 0
        if hidden and row.up_task < 0:
            drawn = _hidden_phase(own, out, c, index, phase, worker)
        else:
            last_task = row.up_task if hidden else w.stages[index].last_task
            head = row.q if layer == depth else -1
            drawn = _projection_phase(own, out, index, last_task, phase, worker, c.widest, head)
            if hidden:
                phase += 1
                _gates_phase(own, c, layer, phase, worker)
            elif stage == INTO_HEADS and layer < depth:
                phase += 1
                _mix_single(out, c, stream, layer, phase, worker)
            elif stage == INTO_HIDDEN:
                phase += 1
                _activate_phase(out, layer, phase)
        if stage in (INTO_HEADS, INTO_HIDDEN):
            own_x = drawn
        before = out
        phase += 1
