"""Dense INT8 products of several rows: pairs of inputs per instruction, four inputs per sum of 32 bits.

Weights of `PIECE` inputs and `GROUP` columns are interleaved by fours, once for all rows, made unsigned (w + 128), and
lie in L1 then. For every row one instruction multiplies the weights of eight columns and four inputs with their counts
and adds pairs of products in 16 bits, as long as those hold them: of `CHUNK` inputs the counts that meet in a lane have
Σ|c| <= `LANE_ROOM`, so that 255 · Σ|c| < 2^15 (`_split_counts` leaves larger ones to the events). Both lanes of a
column are added in 32 bits then; Σ 128 c is taken off at the end. With VNNI one instruction adds all four products of a
column in 32 bits. Everything is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsnn_kernel_numba.machine import AVX2, VNNI
from fastsnn_kernel_numba.numba_runtime import compile, prefetch

U = np.uint64
CHUNK, PIECE, GROUP = 32, 128, 64  # inputs whose products 16 bits hold; inputs, columns that are interleaved together
STRIP, TILE = 32, 16 * PIECE  # columns per instruction that interleaves; bytes of 16 columns in a panel
PANEL = (
    GROUP * PIECE
)  # bytes of the weights that are interleaved together: tile by tile, of two vectors per four inputs
TAKEN = -128  # stands for a count that has become an event
LANE_ROOM = 127  # Σ|c| of the counts of a chunk that meet in a lane of 16 bits, and the largest count of 8 bits
I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
BYTES, SHORTS, INTS = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)


def lanes(values: Any) -> ir.Constant:
    """A mask of a shuffle."""
    values = list(values)
    return ir.Constant(ir.VectorType(I32, len(values)), values)


LOW = lanes(16 * (i // 16) + (i % 16) // 2 + 32 * (i % 2) for i in range(32))  # bytes 0 … 7 of both halves, in turn
HIGH = lanes(16 * (i // 16) + 8 + (i % 16) // 2 + 32 * (i % 2) for i in range(32))


def pointer(builder: Any, address: Any, kind: Any, align: int = 1) -> Any:
    """An address as a pointer to a vector."""
    return builder.inttoptr(address, kind.as_pointer())


def pair_products(builder: Any, unsigned: Any, signed: Any, avx2: bool) -> Any:
    """u_2i s_2i + u_2i+1 s_2i+1 in 16 bits, of 32 bytes each."""
    if avx2:
        kind = ir.FunctionType(SHORTS, [BYTES, BYTES])
        name = "llvm.x86.avx2.pmadd.ub.sw"
        found = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(found, [unsigned, signed])
    none, parts = ir.Constant(BYTES, ir.Undefined), []
    for odd in range(2):
        u = builder.shuffle_vector(unsigned, none, lanes(range(odd, 32, 2)))
        s = builder.shuffle_vector(signed, none, lanes(range(odd, 32, 2)))
        parts.append(builder.mul(builder.zext(u, SHORTS), builder.sext(s, SHORTS)))
    return builder.add(*parts)


def lane_sums(builder: Any, shorts: Any, avx2: bool) -> Any:
    """x_2i + x_2i+1 in 32 bits, of 16 numbers of 16 bits."""
    if avx2:
        kind = ir.FunctionType(INTS, [SHORTS, SHORTS])
        name = "llvm.x86.avx2.pmadd.wd"
        found = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(found, [shorts, ir.Constant(SHORTS, [1] * 16)])
    none = ir.Constant(SHORTS, ir.Undefined)
    low, high = (builder.sext(builder.shuffle_vector(shorts, none, lanes(range(k, 16, 2))), INTS) for k in range(2))
    return builder.add(low, high)


@intrinsic
def _interleave(typing: Any, a: Any, b: Any, c: Any, d: Any, to: Any) -> Any:
    """Weights of four inputs, 32 columns at each address, unsigned and by fours: two tiles' vectors, from `to` on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        flip = ir.Constant(BYTES, [-128] * 32)
        rows = [builder.xor(builder.load(pointer(builder, x, BYTES), align=1), flip) for x in args[:4]]
        words = ir.VectorType(I16, 16)
        for half, mask in enumerate((LOW, HIGH)):  # columns 0 … 7 and 16 … 23, then the others
            pairs = [builder.bitcast(builder.shuffle_vector(rows[i], rows[i + 1], mask), words) for i in (0, 2)]
            for place, begin in enumerate((0, 4)):
                order = lanes(8 * (i // 8) + begin + (i % 8) // 2 + 16 * (i % 2) for i in range(16))
                at = builder.add(args[4], ir.Constant(I64, TILE * half + 32 * place))
                builder.store(builder.shuffle_vector(*pairs, order), pointer(builder, at, words), align=1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


def four_products(builder: Any, sums: Any, unsigned: Any, signed: Any) -> Any:
    """sums_i + Σ_j u_4i+j s_4i+j in 32 bits, of 32 bytes each: one instruction of VNNI."""
    kind = ir.FunctionType(INTS, [INTS] * 3)
    name = "llvm.x86.avx512.vpdpbusd.256"
    found = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(found, [sums, builder.bitcast(unsigned, INTS), builder.bitcast(signed, INTS)])


def product_tile(rows: int, avx2: bool, vnni: bool = False) -> Any:
    """Products of `rows` rows with a tile of 16 columns, as an intrinsic ``(tile, counts, out, chunks)`` of addresses.

    `counts` and `out` are tuples of addresses: counts of 8 bits, and sums of 32 bits to which the products are added,
    columns 0 … 7 and 16 … 23 of a strip.
    """

    def typed(typing: Any, tile: Any, counts: Any, out: Any, chunks: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, out_at = ([builder.extract_value(args[i], r) for r in range(rows)] for i in (1, 2))
            none, zero = ir.Constant(INTS, ir.Undefined), ir.Constant(I32, 0)
            sums = [[cgutils.alloca_once_value(builder, ir.Constant(INTS, [0] * 8)) for _ in range(2)] for _ in at]
            with cgutils.for_range(builder, args[3]) as loop:
                begin = builder.add(args[0], builder.mul(loop.index, ir.Constant(I64, 16 * CHUNK)))
                first = builder.mul(loop.index, ir.Constant(I64, CHUNK))
                shorts: list[list[Any]] = [[None, None] for _ in at]
                for four in range(CHUNK // 4):
                    weights = []
                    for v in range(2):
                        place = builder.add(begin, ir.Constant(I64, 64 * four + 32 * v))
                        weights.append(builder.load(pointer(builder, place, BYTES), align=1))
                    for r in range(rows):
                        place = builder.add(builder.add(at[r], first), ir.Constant(I64, 4 * four))
                        one = builder.load(pointer(builder, place, I32), align=4)
                        one = builder.insert_element(none, one, zero)
                        counted = builder.bitcast(builder.shuffle_vector(one, none, lanes([0] * 8)), BYTES)
                        for v in range(2):
                            if vnni:
                                now = four_products(builder, builder.load(sums[r][v]), weights[v], counted)
                                builder.store(now, sums[r][v])
                                continue
                            found, before = pair_products(builder, weights[v], counted, avx2), shorts[r][v]
                            shorts[r][v] = found if before is None else builder.add(before, found)
                for r in range(0 if vnni else rows):
                    for v in range(2):
                        more = lane_sums(builder, shorts[r][v], avx2)
                        builder.store(builder.add(builder.load(sums[r][v]), more), sums[r][v])
            for r in range(rows):
                left, right = (builder.load(x) for x in sums[r])
                for half in range(2):
                    mask = lanes(4 * half + i % 4 + 8 * (i // 4) for i in range(8))
                    place = pointer(builder, builder.add(out_at[r], ir.Constant(I64, 64 * half)), INTS)
                    more = builder.shuffle_vector(left, right, mask)
                    builder.store(builder.add(builder.load(place, align=4), more), place, align=4)
            return context.get_dummy_value()

        many = types.UniTuple(types.int64, rows)
        return types.void(types.int64, many, many, types.int64), generate

    return intrinsic(typed)


_tile_4, _tile_2, _tile_1 = (product_tile(rows, AVX2, VNNI) for rows in (4, 2, 1))


@compile
def _weight_place(column, i):  # type: ignore[no-untyped-def]
    """Where the weight of a column of a strip and of input i lies in a panel whose tiles begin with the strip."""
    four = (column % 16) // 4
    return four // 2 * TILE + 64 * (i // 4) + 32 * (four % 2) + 16 * (column // 16) + 4 * (column % 4) + i % 4


@compile
def _pack_piece(weight, at, first, inputs, tall, column, n, panel, panel_at):  # type: ignore[no-untyped-def]
    """Inputs first … first + PIECE, up to GROUP columns of a matrix (an array, and its address). Returns its chunks.

    Inputs beyond the last stand for any: their counts are 0.
    """
    chunks, last = (min(inputs - first, PIECE) + CHUNK - 1) // CHUNK, inputs - 1
    for strip in range((n + STRIP - 1) // STRIP):
        to, begin = 2 * TILE * strip, column + STRIP * strip
        if n - STRIP * strip >= STRIP:
            whole = min(CHUNK * chunks, (inputs - first) // 4 * 4)
            a, to_at = at + begin + first * tall, panel_at + to
            for _ in range(0, whole, 4):
                _interleave(a, a + tall, a + 2 * tall, a + 3 * tall, to_at)
                a += 4 * tall
                to_at += 64
            if whole < CHUNK * chunks and first + whole < inputs:
                q = first + whole
                a = at + begin
                b, c, d = min(q + 1, last) * tall + a, min(q + 2, last) * tall + a, min(q + 3, last) * tall + a
                _interleave(min(q, last) * tall + a, b, c, d, panel_at + to + 16 * whole)
        else:
            for i in range(CHUNK * chunks):
                row = min(first + i, last) * tall + begin
                for c in range(n - STRIP * strip):
                    panel[to + _weight_place(c, i)] = weight[row + c] ^ np.int8(-128)
    return chunks


@compile
def _multiply_piece(panel, n, chunks, counts, first, rows, out, width, spare, weight, ahead, lines, tall):  # type: ignore[no-untyped-def]
    """A packed piece for all rows, whose counts begin at the addresses `counts`; row r's sums are at out + 4 width r.

    `lines` rows of `weight` are asked for meanwhile, `tall` apart from place `ahead` on: the next piece. `spare` are
    `GROUP` sums that nobody wants.
    """
    tiles, r, asked = (n + STRIP - 1) // STRIP * 2, 0, 0
    share = lines // max(1, (rows + 3) // 4 * tiles) + 1
    while r < rows:
        m = min(4, rows - r)
        a, b = min(r + 1, rows - 1), min(r + 2, rows - 1)
        c = min(r + 3, rows - 1)
        own, to, left = counts[r] + first, out + 4 * width * r, out + 4 * width * c if m == 4 else spare
        for t in range(tiles):
            place, shift = panel + TILE * t, 128 * (t // 2) + 32 * (t % 2)
            for line in range(asked, min(asked + share, lines)):
                prefetch(weight, ahead + line * tall)
            asked += share
            if m >= 3:
                rows_of = (own, counts[a] + first, counts[b] + first, counts[c] + first)
                places = (to + shift, out + 4 * width * a + shift, out + 4 * width * b + shift, left + shift)
                _tile_4(place, rows_of, places, chunks)
            elif m == 2:
                _tile_2(place, (own, counts[a] + first), (to + shift, out + 4 * width * a + shift), chunks)
            else:
                _tile_1(place, (own,), (to + shift,), chunks)
        r += 4


@compile
def _largest_of_full_lane(counts, narrow, first, last):  # type: ignore[no-untyped-def]
    """Of a chunk: the largest count of a lane whose counts 16 bits do not hold; -1 where there is none."""
    sums_0 = sums_1 = most_0 = most_1 = np.int32(0)
    at_0 = at_1 = -1
    for i in range(first, last):
        size = abs(counts[i]) if narrow[i] != TAKEN else np.int32(0)
        if (i >> 1) & 1:
            sums_1 += size
            at_1, most_1 = (i, size) if size > most_1 else (at_1, most_1)
        else:
            sums_0 += size
            at_0, most_0 = (i, size) if size > most_0 else (at_0, most_0)
    return at_0 if sums_0 > LANE_ROOM else at_1 if sums_1 > LANE_ROOM else -1


@compile
def _split_counts(counts, size, narrow, index, count):  # type: ignore[no-untyped-def]
    """Counts of a row in 8 bits; those that 16 bits would not hold are listed as events, the largest of a lane first.

    Returns how many events there are, and the sum of all other counts. Σ|c| of the row fits 32 bits.
    """
    events, total, padded = 0, np.int32(0), (size + CHUNK - 1) // CHUNK * CHUNK
    for i in range(U(size)):
        narrow[i] = np.int8(max(-LANE_ROOM, min(LANE_ROOM, counts[i])))
    for i in range(size, padded):
        narrow[i] = 0
    for first in range(0, size, CHUNK):
        last, weight, odd = min(first + CHUNK, size), np.int32(0), np.int32(0)
        if last - first == CHUNK:
            for i in range(U(CHUNK)):
                weight += abs(counts[U(first) + i])
                odd += abs(counts[U(first) + i]) * np.int32((i >> U(1)) & U(1))
            if max(odd, weight - odd) <= LANE_ROOM:
                continue
        at = _largest_of_full_lane(counts, narrow, first, last)
        while at >= 0:
            narrow[at] = TAKEN
            at = _largest_of_full_lane(counts, narrow, first, last)
        for i in range(first, last):
            if narrow[i] == TAKEN:
                index[events], count[events] = np.int32(i), counts[i]
                events += 1
                narrow[i] = 0
    for i in range(U(padded)):
        total += np.int32(narrow[i])
    return events, np.int64(total)
