"""Events of a row onto tiles of ternary weights: lists of pairs, and all tiles of a range of bytes list by list."""

from __future__ import annotations

import numpy as np

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.four_bit_tile import ENTRY, MOST_COUNT
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import INT
from fastsnn_kernel_numba.numba_runtime import compile
from fastsnn_kernel_numba.ternary_tile import QUARTERS, TERNARY_ROOM, TERNARY_TILE, ternary_tile

LIST_PAIRS = 64
PAIR_LIST = ENTRY * LIST_PAIRS  # whole numbers of a list
SUMS = QUARTERS * TERNARY_TILE  # of a tile
LINE_BYTES = 64
_add_tile = ternary_tile(ahead=True)


@compile
def _list_pairs(index, count, at, rest, end, stride, lists):  # type: ignore[no-untyped-def]
    """Events `at` … `end` as a list of pairs; `rest` is what is left of the first one's count, 0: all of it.

    A count beyond `MOST_COUNT` is several entries. Returns where to go on, what is left there, and how many pairs.
    """
    entries, room = np.int64(0), np.int64(TERNARY_ROOM - 1)
    while at < end and room > 0 and entries < 2 * LIST_PAIRS:
        whole = np.int64(count[U(at)]) if rest == 0 else rest
        most = min(np.int64(MOST_COUNT), room)
        part = min(max(whole, -most), most)
        room -= abs(part)
        rest = whole - part
        row, both, o = np.int64(index[U(at)]) * stride, (part & 255) * 0x10001, U(ENTRY * (entries >> 1))
        if entries & 1:
            lists[o + U(1)] = row
            lists[o + U(2)] |= both << 8
        else:
            lists[o], lists[o + U(1)], lists[o + U(2)] = row, row, both
        entries += 1
        at += rest == 0
    return at, rest, (entries + 1) >> 1


@compile
def _tile_column(column, t, stride):  # type: ignore[no-untyped-def]
    """Where tile `t` of a range from `column` on begins: the last one of a row ends where the row ends."""
    return min(column + t * TERNARY_TILE, stride - TERNARY_TILE)


@compile
def _add_tiles_of_events(weight, index, count, k, end, stride, column, tiles, lists, sums):  # type: ignore[no-untyped-def]
    """Events k … end onto the sums of the tiles of a range of bytes; `lists` is the address of two lists.

    While a tile is added, the line behind it is asked for, or the first lines of the next list's rows.
    """
    here, soon, rest = lists, lists + 8 * PAIR_LIST, np.int64(0)
    k, rest, many = _list_pairs(index, count, k, rest, end, stride, view(here, PAIR_LIST, INT))
    while many > 0:
        k, rest, more = _list_pairs(index, count, k, rest, end, stride, view(soon, PAIR_LIST, INT))
        for t in range(tiles):
            at, ahead = weight + _tile_column(column, t, stride), (t + 2) * TERNARY_TILE
            wraps = t + 2 >= tiles
            begin = weight + column + (max(t + 2 - tiles, 0) * LINE_BYTES if wraps else ahead)
            _add_tile(at, here, many, begin, soon if wraps else here, sums + 4 * SUMS * t)
        here, soon, many = soon, here, more
