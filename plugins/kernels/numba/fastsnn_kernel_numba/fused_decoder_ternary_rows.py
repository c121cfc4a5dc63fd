"""Ternary weights in a step of several rows: one pass over the weights, with the sums that each row has alone.

A task is a range of tiles (`fastsnn_kernel_numba.ternary_tile`) for all rows, whose weights stay in cache. Rows with
many events go the dense way (`fastsnn_kernel_numba.ternary_dense`): all of them are multiplied with a piece of the
weights that is interleaved once; counts that need more than 8 bits are events. The others take turns with their events,
as alone. Either way the sums Σ c (t + 1) are whole numbers and exact, and Σ c is taken off at the end.
"""

from __future__ import annotations

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.fused_decoder_ternary import _accumulate_ternary, _ternary_dots
from fastsnn_kernel_numba.fused_decoder_work import _work
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import INT, INT32
from fastsnn_kernel_numba.numba_runtime import compile
from fastsnn_kernel_numba.ternary_dense import CODES, _multiply_ternary_tiles
from fastsnn_kernel_numba.ternary_events import PAIR_LIST, SUMS, _add_tiles_of_events, _tile_column
from fastsnn_kernel_numba.ternary_tile import QUARTERS, TERNARY_TILE

TILES = 8  # of a task, at most
ROW_BYTES = TILES * TERNARY_TILE
WIDTH = TILES * SUMS + 16  # sums of a row, and a cache line: rows 4 KiB apart would share their places in L1
SPARE = 4 * SUMS  # bytes of sums that nobody wants
FIXED_ROOM, ROW_ROOM = CODES + SPARE, 8 + 4 * WIDTH  # bytes of a worker, and for every row: an address, sums


@compile
def _accumulate_ternary_rows(places, rows, dense, task, worker, room):  # type: ignore[no-untyped-def]
    """One task for all rows, `dense` of which go the dense way: `dots` of the outputs of its bytes.

    `room` is a worker's address.
    """
    w = _work(places[0])
    t = w.tasks[task]
    m = w.matrices[t.matrix]
    stride = max((m.outputs + QUARTERS - 1) // QUARTERS, TERNARY_TILE)
    tiles, at, d = (t.columns + TERNARY_TILE - 1) // TERNARY_TILE, room + FIXED_ROOM + 8 * dense, 0
    addresses, sums = view(room + FIXED_ROOM, dense, INT), view(at, dense * WIDTH, INT32)
    for r in range(rows):
        one = _work(places[r])
        if one.row[0].dense == 0:
            _accumulate_ternary(one, task, worker)
            continue
        addresses[d] = places[r].count_bytes_at
        for j in range(U(tiles * SUMS)):
            sums[U(d * WIDTH) + j] = 0
        d += 1
    if dense:
        _multiply_ternary_tiles(
            m.address, m.inputs, stride, t.column, tiles, addresses, dense, room, at, WIDTH, room + CODES
        )
    d, lists = 0, w.lists.ctypes.data + 16 * PAIR_LIST * worker
    for r in range(rows):
        one = _work(places[r])
        if one.row[0].dense == 0:
            continue
        events, total = one.row[0].events, one.row[0].total
        if events:
            to = at + 4 * WIDTH * d
            _add_tiles_of_events(m.address, one.index, one.count, 0, events, stride, t.column, tiles, lists, to)
        for k in range(U(events)):
            total += one.count[k]
        for i in range(tiles):
            c = _tile_column(t.column, i, stride)
            _ternary_dots(one, m, total, c, t.column + i * TERNARY_TILE - c, sums, d * WIDTH + i * SUMS)
        d += 1
