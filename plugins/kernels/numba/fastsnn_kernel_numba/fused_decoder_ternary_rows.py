"""Ternary weights in a step of several rows: one pass over the weights, with the sums that each row has alone.

A task is a range of tiles (`fastsnn_kernel_numba.ternary_tile`) for all rows, whose weights stay in cache. Rows with
many events go the dense way (`fastsnn_kernel_numba.dense_pairs`): of a tile and a piece of the inputs the codes t + 1
are unpacked once to bytes, by fours of inputs, and multiplied with the counts of all such rows; counts that need more
than 8 bits are events. The others take turns with their events, as alone. Either way the sums Σ c (t + 1) are whole
numbers and exact, and Σ c is taken off at the end.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.dense_pairs import (
    BYTES,
    CHUNK,
    HIGH,
    I64,
    LOW,
    PIECE,
    SHORTS,
    STRIP,
    TILE,
    _multiply_piece,
    lanes,
    pointer,
)
from fastsnn_kernel_numba.fused_decoder_ternary import _accumulate_ternary, _ternary_dots
from fastsnn_kernel_numba.fused_decoder_work import _work
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import INT, INT8, INT32
from fastsnn_kernel_numba.numba_runtime import compile
from fastsnn_kernel_numba.ternary_events import PAIR_LIST, SUMS, _add_tiles_of_events, _tile_column
from fastsnn_kernel_numba.ternary_tile import QUARTERS, TERNARY_TILE

TILES = 8  # of a task, at most
ROW_BYTES = TILES * TERNARY_TILE
WIDTH = TILES * SUMS + 16  # sums of a row, and a cache line: rows 4 KiB apart would share their places in L1
PANEL = QUARTERS * STRIP * PIECE  # bytes of the codes of a tile and a piece of the inputs
SPARE = 4 * SUMS  # bytes of sums that nobody wants
FIXED_ROOM, ROW_ROOM = PANEL + SPARE, 8 + 4 * WIDTH  # bytes of a worker, and for every row: an address, sums


@intrinsic
def _unpack_four(typing: Any, a: Any, b: Any, c: Any, d: Any, to: Any) -> Any:
    """Codes of four inputs, 32 bytes at each address, by fours: the vectors of eight tiles, two of each quarter.

    The order within a quarter is that of `dense_pairs._interleave`.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = [builder.load(pointer(builder, x, BYTES), align=1) for x in args[:4]]
        mask = ir.Constant(BYTES, [3] * 32)
        for half, order in enumerate((LOW, HIGH)):
            pairs = [builder.bitcast(builder.shuffle_vector(rows[i], rows[i + 1], order), SHORTS) for i in (0, 2)]
            for place, begin in enumerate((0, 4)):
                fours = lanes(8 * (i // 8) + begin + (i % 8) // 2 + 16 * (i % 2) for i in range(16))
                packed = builder.shuffle_vector(*pairs, fours)
                for quarter in range(QUARTERS):
                    moved = builder.lshr(packed, ir.Constant(SHORTS, [2 * quarter] * 16))
                    codes = builder.and_(builder.bitcast(moved, BYTES), mask)
                    at = builder.add(args[4], I64(TILE * (2 * quarter + half) + 32 * place))
                    builder.store(codes, pointer(builder, at, BYTES), align=1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@compile
def _unpack_piece(at, first, inputs, stride, panel):  # type: ignore[no-untyped-def]
    """Codes of a tile, inputs first … first + PIECE, to the address `panel`. Returns how many chunks of inputs.

    Inputs beyond the last stand for any: their counts are 0.
    """
    chunks, last = (min(inputs - first, PIECE) + CHUNK - 1) // CHUNK, inputs - 1
    for i in range(first, min(first + CHUNK * chunks, inputs), 4):
        a, b, c = at + i * stride, min(i + 1, last) * stride + at, min(i + 2, last) * stride + at
        _unpack_four(a, b, c, min(i + 3, last) * stride + at, panel + 16 * (i - first))
    return chunks


@compile
def _multiply_tiles(m, first, stride, column, tiles, addresses, dense, room, to):  # type: ignore[no-untyped-def]
    """A piece of the inputs for all `dense` rows, tile by tile; the next tile's weights are asked for meanwhile."""
    weight = view(m.address, m.inputs * stride, INT8)
    for t in range(tiles):
        chunks = _unpack_piece(m.address + _tile_column(column, t, stride), first, m.inputs, stride, room)
        soon, ahead = (first, t + 1) if t + 1 < tiles else (first + PIECE, 0)
        lines = max(0, min(m.inputs - soon, PIECE))
        place = soon * stride + _tile_column(column, ahead, stride)
        _multiply_piece(
            room, QUARTERS * STRIP, chunks, addresses, first, dense, to + 4 * SUMS * t, WIDTH, room + PANEL,
            weight, place, lines, stride,
        )  # fmt: skip


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
    for first in range(0, m.inputs if dense else 0, PIECE):
        _multiply_tiles(m, first, stride, t.column, tiles, addresses, dense, room, at)
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
