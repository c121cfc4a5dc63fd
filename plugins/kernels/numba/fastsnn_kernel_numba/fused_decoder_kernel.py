"""One token of one stream or several through a whole decoder in one parallel region: `_walk` is what a worker does.

A block has four projections (q, k and v together · output · gate and up together · down), and each of them the same
stages: prologue (residual, norm, quantise to events); tasks of weight rows; then, behind the first and the third, heads
or hidden channels. The head of the network is one projection more. `fastsnn_kernel_numba.spin_barrier` hands out the
tasks. Projections are split over events where they are narrow, and the parts added by whoever reads them; over columns
where they are wide. A single row goes through `fastsnn_kernel_numba.fused_decoder_single`. With several rows (streams),
every row has arrays of its own, and whoever draws its prologue does it; their projections are
`fastsnn_kernel_numba.fused_decoder_rows`. Everything is written so that each piece occurs once (compiling took a minute
before).
"""

from __future__ import annotations

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.fused_decoder_heads import _mix
from fastsnn_kernel_numba.fused_decoder_prologue import INTO_HEADS, INTO_HIDDEN, STAGES, _prologue
from fastsnn_kernel_numba.fused_decoder_rows import _goes_dense, _project_rows
from fastsnn_kernel_numba.fused_decoder_single import BLOCK, _activate, _walk_single
from fastsnn_kernel_numba.fused_decoder_stages import _list_events
from fastsnn_kernel_numba.fused_decoder_work import _work
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import CALL, INT, PLACES, STREAM
from fastsnn_kernel_numba.spin_barrier import atomic_add, finish_task, next_task, wait_for_tasks


def _walk(call):  # type: ignore[no-untyped-def]
    """What one worker does of a step; `call` is the address of a record `CALL`. Workers count themselves."""
    c = view(call, 1, CALL)[0]
    rows, phase = c.rows, 0
    first = view(c.places, 1, PLACES)[0]
    worker = atomic_add(view(first.sync_at, first.sync_size, INT), first.sync_size - 1, 1)
    streams = view(c.streams, rows, STREAM)
    if rows == 1:
        _walk_single(c, view(c.places, STAGES * (1 + c.workers), PLACES), streams[0], worker)
        return
    places = view(c.places, rows, PLACES)
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
            _prologue(own, own, own.x, index, streams[r].token, pa)
            if not _goes_dense(places[r], tasks.size, tasks.four, rows, c):
                _list_events(own.counts, tasks.size, own.index, own.count)
            finish_task(w.sync, phase)
            r = next_task(w.sync, phase)
        wait_for_tasks(w.sync, phase, rows)
        _project_rows(w, c, places, rows, phase + 1, tasks, worker, row.q if layer == depth else -1)
        phase += 3
        if stage == INTO_HEADS and layer < depth:
            _mix(c, places, streams, layer, phase, worker)
            phase += 1
        elif stage == INTO_HIDDEN:
            blocks = (row.hidden + BLOCK - 1) // BLOCK
            t = next_task(w.sync, phase)
            while t < blocks * rows:
                first = t % blocks * BLOCK
                _activate(_work(places[t // blocks]), layer, first, min(BLOCK, row.hidden - first))
                finish_task(w.sync, phase)
                t = next_task(w.sync, phase)
            wait_for_tasks(w.sync, phase, blocks * rows)
            phase += 1
