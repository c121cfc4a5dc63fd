"""Dense products of several rows with ternary weights: codes stay in 2 bits, four of them in a byte.

    sums_o += Σ_i c_i u_io          u = t + 1 in {0, 1, 2}

The bytes of `FOURS` inputs and a tile of 32 columns are interleaved by fours of inputs, once for all rows, and lie in
L1 then. A mask leaves one quarter's codes of a vector, in their place (4^q u), which up to four rows multiply with
their counts of 8 bits as `fastsnn_kernel_numba.dense_pairs` does, whose bounds hold for any bytes. Sums of 4^q u are
shifted back at the end of a piece, which is exact.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.dense_pairs import (
    BYTES,
    CHUNK,
    HIGH,
    I32,
    I64,
    INTS,
    LOW,
    SHORTS,
    four_products,
    lane_sums,
    lanes,
    pair_products,
    pointer,
)
from fastsnn_kernel_numba.four_bit_tile import loaded, repeated
from fastsnn_kernel_numba.layout import INT8
from fastsnn_kernel_numba.machine import AVX2, VNNI
from fastsnn_kernel_numba.numba_runtime import compile, prefetch
from fastsnn_kernel_numba.ternary_events import SUMS, _tile_column
from fastsnn_kernel_numba.ternary_tile import QUARTERS, TERNARY_TILE

FOURS = 256  # inputs whose codes are interleaved together
EIGHTH, EIGHTHS = 8 * FOURS, TERNARY_TILE // 8  # bytes of a panel of eight columns; how many of them a tile has
CODES = EIGHTHS * EIGHTH  # bytes of a tile's codes
TOGETHER = 4  # rows of a product


@intrinsic
def _interleave_codes(typing: Any, a: Any, b: Any, c: Any, d: Any, to: Any) -> Any:
    """32 bytes of four inputs, by fours: four vectors of columns j … j + 3 and j + 16 … j + 19, `EIGHTH` apart."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = [builder.load(pointer(builder, x, BYTES), align=1) for x in args[:4]]
        for half, order in enumerate((LOW, HIGH)):
            pairs = [builder.bitcast(builder.shuffle_vector(rows[i], rows[i + 1], order), SHORTS) for i in (0, 2)]
            for place, begin in enumerate((0, 4)):
                fours = lanes(8 * (i // 8) + begin + (i % 8) // 2 + 16 * (i % 2) for i in range(16))
                at = builder.add(args[4], I64(EIGHTH * (2 * half + place)))
                builder.store(builder.shuffle_vector(*pairs, fours), pointer(builder, at, SHORTS), align=1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


def ternary_products(rows: int, avx2: bool = AVX2, vnni: bool = VNNI) -> Any:
    """Products of `rows` rows with eight columns, as an intrinsic ``(codes, counts, out, chunks)`` of addresses.

    `counts` and `out` are tuples of addresses: counts of 8 bits, and sums of 32 bits, quarter after quarter of a tile
    from the first column on, to which the products are added.
    """

    def typed(typing: Any, codes: Any, counts: Any, out: Any, chunks: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, out_at = ([builder.extract_value(args[i], r) for r in range(rows)] for i in (1, 2))
            masks = [ir.Constant(BYTES, [(3 << 2 * q) - (256 if q == 3 else 0)] * 32) for q in range(QUARTERS)]
            zero = ir.Constant(INTS, [0] * 8)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in masks] for _ in at]
            with cgutils.for_range(builder, args[3], intp=I64) as loop:
                begin = builder.add(args[0], builder.mul(loop.index, I64(8 * CHUNK)))
                first = builder.mul(loop.index, I64(CHUNK))
                shorts: list[list[Any]] = [[None] * QUARTERS for _ in at]
                for four in range(CHUNK // 4):
                    packed = loaded(builder, begin, I64(32 * four), BYTES)
                    weights = [builder.and_(packed, mask) for mask in masks]
                    for r in range(rows):
                        one = loaded(builder, builder.add(at[r], first), I64(4 * four), I32, 4)
                        counted = builder.bitcast(repeated(builder, one, INTS), BYTES)
                        for q in range(QUARTERS):
                            if vnni:
                                now = four_products(builder, builder.load(sums[r][q]), weights[q], counted)
                                builder.store(now, sums[r][q])
                                continue
                            found, before = pair_products(builder, weights[q], counted, avx2), shorts[r][q]
                            shorts[r][q] = found if before is None else builder.add(before, found)
                for r in range(0 if vnni else rows):
                    for q in range(QUARTERS):
                        more = lane_sums(builder, shorts[r][q], avx2)
                        builder.store(builder.add(builder.load(sums[r][q]), more), sums[r][q])
            none, four_ints = ir.Constant(INTS, ir.Undefined), ir.VectorType(I32, 4)
            for r in range(rows):
                for q in range(QUARTERS):
                    total = builder.ashr(builder.load(sums[r][q]), ir.Constant(INTS, [2 * q] * 8))
                    for half in range(2):
                        part = builder.shuffle_vector(total, none, lanes(range(4 * half, 4 * half + 4)))
                        place = builder.add(out_at[r], I64(4 * (TERNARY_TILE * q + 16 * half)))
                        to = pointer(builder, place, four_ints)
                        builder.store(builder.add(builder.load(to, align=4), part), to, align=4)
            return context.get_dummy_value()

        many = types.UniTuple(types.int64, rows)
        return types.void(types.int64, many, many, types.int64), generate

    return intrinsic(typed)


_rows_of_4, _rows_of_2 = ternary_products(4), ternary_products(2)


@compile
def _interleave_piece(at, first, inputs, stride, to):  # type: ignore[no-untyped-def]
    """Bytes of a tile, inputs first … first + FOURS, to the address `to`. Returns how many chunks of inputs.

    Inputs beyond the last stand for any: their counts are 0.
    """
    end, last = min(inputs, first + FOURS), inputs - 1
    for i in range(first, end, 4):
        a, b, c = at + i * stride, min(i + 1, last) * stride + at, min(i + 2, last) * stride + at
        _interleave_codes(a, b, c, min(i + 3, last) * stride + at, to + 8 * (i - first))
    return (end - first + CHUNK - 1) // CHUNK


@compile
def _multiply_codes(codes, chunks, counts, first, rows, out, width, spare, weight, ahead, lines, stride):  # type: ignore[no-untyped-def]
    """An interleaved piece for all rows, whose counts begin at the addresses `counts`; row r's sums of the tile are at
    out + 4 width r.

    `lines` rows of `weight` are asked for meanwhile, `stride` apart from place `ahead` on: the next piece. `spare` is
    the address of sums that nobody wants.
    """
    asked, share, last = 0, lines // (EIGHTHS * ((rows + TOGETHER - 1) // TOGETHER)) + 1, rows - 1
    for eighth in range(EIGHTHS):
        place, shift = codes + EIGHTH * eighth, 16 * eighth
        for r in range(0, rows, TOGETHER):
            for line in range(asked, min(asked + share, lines)):
                prefetch(weight, ahead + line * stride)
            asked += share
            b, c, d = min(r + 1, last), min(r + 2, last), min(r + 3, last)
            own, other = out + 4 * width * r + shift, (out + 4 * width * b if r < last else spare) + shift
            if r + 2 < rows:
                third = out + 4 * width * c + shift
                fourth = (out + 4 * width * d if r + 3 < rows else spare) + shift
                at = (counts[r] + first, counts[b] + first, counts[c] + first, counts[d] + first)
                _rows_of_4(place, at, (own, other, third, fourth), chunks)
            else:
                _rows_of_2(place, (counts[r] + first, counts[b] + first), (own, other), chunks)


@compile
def _multiply_ternary_tiles(address, inputs, stride, column, tiles, counts, rows, codes, out, width, spare):  # type: ignore[no-untyped-def]
    """All products of rows with the tiles of a range of bytes; the next tile's weights are asked for meanwhile."""
    weight = view(address, inputs * stride, INT8)
    for first in range(0, inputs, FOURS):
        for t in range(tiles):
            chunks = _interleave_piece(address + _tile_column(column, t, stride), first, inputs, stride, codes)
            soon, next_tile = (first, t + 1) if t + 1 < tiles else (first + FOURS, 0)
            ahead, lines = soon * stride + _tile_column(column, next_tile, stride), max(0, min(inputs - soon, FOURS))
            to = out + 4 * SUMS * t
            _multiply_codes(codes, chunks, counts, first, rows, to, width, spare, weight, ahead, lines, stride)
