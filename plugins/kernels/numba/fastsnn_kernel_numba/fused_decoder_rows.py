"""Projections of several rows in one pass over the weights: the fused step of 2 to `MOST_ROWS` streams.

A task is a range of columns for all rows. Rows with many events go the dense way (`fastsnn_kernel_numba.dense_pairs`):
piece by piece, weights are interleaved once and multiplied with the counts of all such rows. The others add their own
events, a block of inputs after the other whose weights stay in cache, so memory is read once for all rows, and only
where any of them has an event. Sums are whole numbers and exact, so a row's are the same bits as alone, whichever way;
everything else of a row is done by the stages that a single row has.
"""

from __future__ import annotations

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.dense_pairs import GROUP, PANEL, PIECE, _multiply_piece, _pack_piece, _split_counts
from fastsnn_kernel_numba.four_bit_tile import LIST
from fastsnn_kernel_numba.fused_decoder_four_bits import _add_listed, _clear_dots, _list_group
from fastsnn_kernel_numba.fused_decoder_stages import _accumulate_task, _dequantise_task
from fastsnn_kernel_numba.fused_decoder_ternary import TERNARY_GROUP
from fastsnn_kernel_numba.fused_decoder_ternary_rows import FIXED_ROOM, ROW_ROOM, _accumulate_ternary_rows
from fastsnn_kernel_numba.fused_decoder_work import _work
from fastsnn_kernel_numba.gemm_events import ROOM, U, _accumulate_events, _flush_int16, _lower_bound
from fastsnn_kernel_numba.layout import INT, INT8, INT32, ROW, UINT8
from fastsnn_kernel_numba.numba_runtime import compile, prefetch
from fastsnn_kernel_numba.spin_barrier import finish_task, next_task, wait_for_tasks

MOST_ROWS = 32  # streams of one step; more take turns
COLUMNS = 1024  # outputs per task, at most
FOUR_BYTES = 512  # of 4-bit rows per task: a group of 32 inputs stays in L1
INPUTS = 128  # of a block of events: with 1024 columns 128 KiB of weights
USED = 256  # inputs per task of `_mark_used`
DENSE_FROM, DENSE_LEAST = 0.25, 1.5  # active share of a row's inputs, and of all rows together: benchmarks/batched.py
# Of a worker: interleaved weights, sums nobody wants, addresses, sums.
WIDTH = COLUMNS + 16  # sums of a row of it, and a cache line: rows 4 KiB apart would share their places in L1
SPARE, ADDRESSES = PANEL + 4 * GROUP, 8 * MOST_ROWS
DENSE_ROOM = max(SPARE + ADDRESSES + 4 * MOST_ROWS * WIDTH, FIXED_ROOM + MOST_ROWS * ROW_ROOM)


@compile
def _goes_dense(p, size, four, rows_all, c):  # type: ignore[no-untyped-def]
    """Does this row go the dense way, behind its prologue? Where it and `rows_all` such rows have events enough.

    Its events are those then that the dense way leaves.
    """
    rows = view(p.row_at, 1, ROW)
    events = rows[0].events
    rows[0].dense = 0
    if (
        rows_all == 1
        or four
        or rows[0].wide
        or events < c.dense_from * size
        or events * rows_all < c.dense_least * size
    ):
        return False
    counts, narrow = view(p.counts_at, p.counts_size, INT32), view(p.count_bytes_at, p.count_bytes_size, INT8)
    index, count = view(p.index_at, p.index_size, INT32), view(p.count_at, p.count_size, INT32)
    events, total = _split_counts(counts, size, narrow, index, count)
    rows[0].events, rows[0].total, rows[0].dense = events, total, 1
    return True


@compile
def _dense_rows(places, rows):  # type: ignore[no-untyped-def]
    """How many rows go the dense way."""
    found = 0
    for r in range(rows):
        found += view(places[r].row_at, 1, ROW)[0].dense
    return found


@compile
def _mark_used(places, rows, used, first, last):  # type: ignore[no-untyped-def]
    """Which of the inputs first … last have an event in any row."""
    a, n = U(first), U(last - first)
    for i in range(n):
        used[a + i] = 0
    for r in range(rows):
        counts = view(places[r].counts_at, places[r].counts_size, INT32)
        for i in range(n):
            used[a + i] |= counts[a + i] != 0


@compile
def _mark_phase(c, places, rows, inputs, sync, phase):  # type: ignore[no-untyped-def]
    """A phase that marks all inputs of a projection."""
    used, tasks = view(c.used_at, c.used_size, INT8), (inputs + USED - 1) // USED
    t = next_task(sync, phase)
    while t < tasks:
        _mark_used(places, rows, used, t * USED, min(t * USED + USED, inputs))
        finish_task(sync, phase)
        t = next_task(sync, phase)
    wait_for_tasks(sync, phase, tasks)


@compile
def _prefetch_block(weight, used, every, first, last, tall, column, n):  # type: ignore[no-untyped-def]
    """Prefetch the weights of a block of inputs: of all of them, or of those that any row needs."""
    for i in range(first, last):
        if every or used[i]:
            for line in range(i * tall + column, i * tall + column + n, 64):
                prefetch(weight, line)


@compile
def _multiply_rows(places, rows, dense, weight, address, inputs, tall, column, n, oo, room):  # type: ignore[no-untyped-def]
    """Sums of the rows that go the dense way, columns column … column + n; `room` is a worker's address."""
    panel, addresses = view(room, PANEL, INT8), view(room + SPARE, MOST_ROWS, INT)
    at, groups = room + SPARE + ADDRESSES, (n + GROUP - 1) // GROUP
    out, d = view(at, MOST_ROWS * WIDTH, INT32), 0
    for r in range(rows):
        if view(places[r].row_at, 1, ROW)[0].dense:
            addresses[d] = places[r].count_bytes_at
            d += 1
    for i in range(U(dense * WIDTH)):
        out[i] = 0
    for first in range(0, inputs, PIECE):
        for g in range(groups):
            begin, columns = column + GROUP * g, min(n - GROUP * g, GROUP)
            chunks = _pack_piece(weight, address, first, inputs, tall, begin, columns, panel, room)
            soon, ahead = (first, begin + GROUP) if g + 1 < groups else (first + PIECE, column)
            lines = max(0, min(inputs - soon, PIECE))
            to, spare = at + 4 * GROUP * g, room + PANEL
            _multiply_piece(
                room,
                columns,
                chunks,
                addresses,
                first,
                dense,
                to,
                WIDTH,
                spare,
                weight,
                soon * tall + ahead,
                lines,
                tall,
            )
    d = 0
    for r in range(rows):
        row = view(places[r].row_at, 1, ROW)[0]
        if row.dense:
            sums, off, own = view(places[r].sums_at, places[r].sums_size, INT32), 128 * row.total, U(d * WIDTH)
            for j in range(U(n)):
                sums[oo + j] = out[own + j] - off
            d += 1


@compile
def _add_groups_of_rows(w, c, places, rows, task, worker):  # type: ignore[no-untyped-def]
    """One task of 4-bit weights for all rows: a group's weights are read once, and rows take turns on them."""
    t = w.tasks[task]
    m = w.matrices[t.matrix]
    half, inputs, group = (m.outputs + 1) // 2, m.inputs, m.group
    weight, used = view(m.address, inputs * half, UINT8), view(c.used_at, c.used_size, INT8)
    cursor, own, at = view(c.cursor_at, c.workers * MOST_ROWS * 2, INT), worker * MOST_ROWS, worker * 2 * LIST
    for r in range(rows):
        cursor[2 * (own + r)] = 0
        _clear_dots(_work(places[r]), task)
    for first in range(0, inputs, group):
        limit = first + group
        _prefetch_block(weight, used, True, limit, min(limit + group, inputs), half, t.column, t.columns)
        for r in range(rows):
            row, k = _work(places[r]), cursor[2 * (own + r)]
            if k < row.row[0].events and row.index[k] < limit:
                end, total, pairs = _list_group(row, k, group, half, at)
                _add_listed(row, task, k, end, total, pairs, at, at, worker)
                cursor[2 * (own + r)] = end


@compile
def _accumulate_rows(w, c, places, rows, dense, task, worker):  # type: ignore[no-untyped-def]
    """One task: all rows' sums of its columns; rows whose sums need 64 bits come alone, behind the others."""
    t = w.tasks[task]
    m = w.matrices[t.matrix]
    if m.group:
        if m.group == TERNARY_GROUP:
            _accumulate_ternary_rows(places, rows, dense, task, worker, c.dense_at + worker * DENSE_ROOM)
        else:
            _add_groups_of_rows(w, c, places, rows, task, worker)
        return
    column, n, tall, inputs, oo = t.column, U(t.columns), m.outputs, m.inputs, U(m.sums + t.column)
    weight, used = view(m.address, tall * inputs, INT8), view(c.used_at, c.used_size, INT8)
    cursor, own = view(c.cursor_at, c.workers * MOST_ROWS * 2, INT), worker * MOST_ROWS
    many = min(t.columns, GROUP) if dense else t.columns
    _prefetch_block(weight, used, dense > 0, 0, min(PIECE if dense else INPUTS, inputs), tall, column, many)
    if dense:
        room = c.dense_at + worker * DENSE_ROOM
        _multiply_rows(places, rows, dense, weight, m.address, inputs, tall, column, t.columns, oo, room)
    for r in range(rows):
        cursor[2 * (own + r)], cursor[2 * (own + r) + 1] = 0, ROOM
        row, oa = view(places[r].row_at, 1, ROW)[0], U((own + r) * COLUMNS)
        sums = view(places[r].sums_at, places[r].sums_size, INT32)
        for j in range(n if row.events else U(0)):
            w.acc[oa + j] = 0
        if not row.dense:
            for j in range(n):
                sums[oo + j] = 0
    for low in range(0, inputs, INPUTS):
        high = min(low + INPUTS, inputs)
        if not dense:
            _prefetch_block(weight, used, False, high, min(high + INPUTS, inputs), tall, column, t.columns)
        for r in range(rows):
            p, at = places[r], 2 * (own + r)
            row = view(p.row_at, 1, ROW)[0]
            if row.wide or row.events == 0:
                continue
            index, count = view(p.index_at, p.index_size, INT32), view(p.count_at, p.count_size, INT32)
            sums, oa, k = view(p.sums_at, p.sums_size, INT32), U((own + r) * COLUMNS), cursor[at]
            end = row.events if high == inputs else _lower_bound(index, k, min(row.events, k + INPUTS), high)
            cursor[at + 1] = _accumulate_events(
                weight, index, count, k, end, tall, column, n, w.acc, oa, sums, oo, cursor[at + 1], k
            )
            cursor[at] = end
    for r in range(rows):
        p = places[r]
        row = view(p.row_at, 1, ROW)[0]
        if row.wide:
            _accumulate_task(_work(p), task, worker * MOST_ROWS, COLUMNS)
        elif row.events:
            _flush_int16(w.acc, U((own + r) * COLUMNS), view(p.sums_at, p.sums_size, INT32), oo, n)


@compile
def _project_rows(w, c, places, rows, phase, stage, worker, head):  # type: ignore[no-untyped-def]
    """The projections of a stage for all rows, in two phases; those of the network's head become logits at once."""
    dense, first, last = _dense_rows(places, rows), stage.first_task, stage.last_task
    if not dense and w.matrices[w.tasks[first].matrix].group == 0:
        _mark_phase(c, places, rows, stage.size, w.sync, phase)
    phase += 1
    t = next_task(w.sync, phase)
    while t < last - first:
        _accumulate_rows(w, c, places, rows, dense, first + t, worker)
        if head >= 0:
            task = w.tasks[first + t]
            for r in range(rows):
                _dequantise_task(_work(places[r]), head, task.column, task.columns)
        finish_task(w.sync, phase)
        t = next_task(w.sync, phase)
    wait_for_tasks(w.sync, phase, last - first)
