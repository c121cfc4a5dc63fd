"""Products of a group of 4-bit weights in registers: two events and 32 weights per instruction.

    out_o += float(Σ_e c_e q_eo) · d_o + float(Σ_e c_e) · m_o          with a minimum
    out_o += float(Σ_e c_e q_eo - 8 Σ_e c_e) · d_o                     without one

A tile is 32 or 64 bytes of every weight row, whose low and high nibbles are outputs `half` apart. The bytes of two
events are interleaved, so that one instruction multiplies 16 pairs of codes (0 … 15) with a pair of counts (at most
`MOST_COUNT`) and adds the two products. Sums stay in registers, 16 bits wide, until the group is scaled: 15 · Σ|c| must
stay below 2^15 (`ROOM`). The next group's weights are asked for meanwhile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsnn_integer.four_bits import MIDDLE
from fastsnn_kernel_numba.dense_pairs import (
    BYTES,
    HIGH,
    I8,
    I16,
    I32,
    I64,
    INTS,
    LOW,
    SHORTS,
    lanes,
    pair_products,
    pointer,
)
from fastsnn_kernel_numba.machine import AVX2, HALVES
from fastsnn_kernel_numba.numba_runtime import compile

U = np.uint64
WIDE, NARROW = 64, 32  # bytes of a tile
MOST_COUNT = 127  # of an entry of a list; larger counts are several entries
ROOM = (1 << 15) // 16  # Σ|c| of a group below which 16 bits hold Σ c q
ENTRY = 3  # whole numbers of a pair: where its two weight rows begin, and their counts
MOST_EVENTS = 300  # of a group in a list
LIST = ENTRY * (MOST_EVENTS + ROOM // MOST_COUNT + 2) // 2  # whole numbers of a list
EIGHT_FLOATS, EIGHT_HALVES = ir.VectorType(ir.FloatType(), 8), ir.VectorType(ir.HalfType(), 8)
EIGHT_SHORTS = ir.VectorType(I16, 8)


def loaded(builder: Any, address: Any, offset: Any, kind: Any, align: int = 1) -> Any:
    """What lies `offset` bytes behind an address."""
    return builder.load(pointer(builder, builder.add(address, offset), kind), align=align)


def repeated(builder: Any, value: Any, kind: Any) -> Any:
    """A vector with one value in every lane."""
    none = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(none, value, I32(0)), none, lanes([0] * kind.count))


def widened_halves(builder: Any, address: Any, offset: Any, by_machine: bool) -> Any:
    """Eight float16 numbers as float32: by the machine's own conversion, or by their bits (finite ones)."""
    if by_machine:
        return builder.fpext(loaded(builder, address, offset, EIGHT_HALVES), EIGHT_FLOATS)
    bits = builder.zext(loaded(builder, address, offset, EIGHT_SHORTS), INTS)
    rest = builder.shl(builder.and_(bits, ir.Constant(INTS, [0x7FFF] * 8)), ir.Constant(INTS, [13] * 8))
    sign = builder.shl(builder.and_(bits, ir.Constant(INTS, [0x8000] * 8)), ir.Constant(INTS, [16] * 8))
    size = builder.fmul(builder.bitcast(rest, EIGHT_FLOATS), ir.Constant(EIGHT_FLOATS, [2.0**112] * 8))
    return builder.bitcast(builder.or_(builder.bitcast(size, INTS), sign), EIGHT_FLOATS)


def fetch_line(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address: to be read, into L2; no access, so any will do."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    found = builder.module.declare_intrinsic("llvm.prefetch", (I8.as_pointer(),), kind)
    builder.call(found, [pointer(builder, address, I8), I32(0), I32(2), I32(1)])


def pair_sums(builder: Any, args: Any, vectors: int, ahead: bool, avx2: bool) -> list[Any]:
    """Sums of a tile over a list of pairs, `SHORTS` by vector, nibble and half of the interleaved bytes."""
    weight, pairs, many, soon = args
    zero, mask, four = (ir.Constant(kind, [n] * kind.count) for kind, n in ((SHORTS, 0), (BYTES, 15), (SHORTS, 4)))
    sums = [cgutils.alloca_once_value(builder, zero) for _ in range(4 * vectors)]
    with cgutils.for_range(builder, many, intp=I64) as loop:
        place = builder.mul(loop.index, I64(8 * ENTRY))
        entry, next_entry = builder.add(pairs, place), builder.add(soon, place)
        first, second = (loaded(builder, entry, I64(at), I64, 8) for at in (0, 8))
        counts = builder.bitcast(repeated(builder, loaded(builder, entry, I64(16), I32, 8), INTS), BYTES)
        for at in (0, 8) if ahead else ():
            fetch_line(builder, builder.add(weight, loaded(builder, next_entry, I64(at), I64, 8)))
        for v in range(vectors):
            rows = [loaded(builder, weight, builder.add(row, I64(32 * v)), BYTES) for row in (first, second)]
            for part, order in enumerate((LOW, HIGH)):
                both = builder.shuffle_vector(*rows, order)
                upper = builder.bitcast(builder.lshr(builder.bitcast(both, SHORTS), four), BYTES)
                for nibble, codes in enumerate((both, upper)):
                    total = sums[4 * v + 2 * nibble + part]
                    found = pair_products(builder, builder.and_(codes, mask), counts, avx2)
                    builder.store(builder.add(builder.load(total), found), total)
    return [builder.load(total) for total in sums]


def scale_tile(builder: Any, args: Any, sums: list[Any], minimum: bool, read: Any, size: int, ahead: bool) -> None:
    """Sums of a tile onto its outputs; ``read(builder, address, offset)`` eight scales of `size` bytes each.

    With `ahead` the scales of the group behind are asked for.
    """
    scales, minimums, total, out, half = args
    lift = repeated(builder, builder.sitofp(total, ir.FloatType()), EIGHT_FLOATS)
    off = repeated(builder, builder.trunc(builder.mul(total, I64(MIDDLE)), I32), INTS)
    none = ir.Constant(SHORTS, ir.Undefined)
    for v in range(len(sums) // 4):
        for nibble in range(2):
            apart = builder.mul(half, I64(nibble))
            for numbers in (scales, minimums)[: 1 + minimum] if ahead else ():
                behind = builder.add(builder.add(apart, builder.mul(half, I64(2))), I64(32 * v))
                fetch_line(builder, builder.add(numbers, builder.mul(behind, I64(size))))
            for eighth in range(4):  # outputs 8 · eighth …: halves of the two interleaved vectors in turn
                lane = 8 * (eighth // 2)
                short = builder.shuffle_vector(
                    sums[4 * v + 2 * nibble + eighth % 2], none, lanes(range(lane, lane + 8))
                )
                part, at = builder.sext(short, INTS), builder.add(apart, I64(32 * v + 8 * eighth))
                place = builder.mul(at, I64(size))
                if minimum:
                    y = builder.fmul(builder.sitofp(part, EIGHT_FLOATS), read(builder, scales, place))
                    y = builder.fadd(y, builder.fmul(lift, read(builder, minimums, place)))
                else:
                    part = builder.sub(part, off)
                    y = builder.fmul(builder.sitofp(part, EIGHT_FLOATS), read(builder, scales, place))
                to = builder.add(out, builder.mul(at, I64(4)))
                y = builder.fadd(loaded(builder, to, I64(0), EIGHT_FLOATS, 4), y)
                builder.store(y, pointer(builder, to, EIGHT_FLOATS), align=4)


def group_tile(
    vectors: int, minimum: bool, halves: bool, ahead: bool, avx2: bool = AVX2, by_machine: bool = HALVES
) -> Any:
    """One group's part of a tile of 32 · `vectors` bytes, as an intrinsic ``(weight, pairs, many, soon, scales,
    minimums, total, out, half)``: addresses of the first weight row at the tile's column, of a list and its length, of
    the next group's list, of the first output's scale, minimum and place; the sum of the counts.

    Scales are float16 (`halves`) or float32; with `ahead` the next group's weights are asked for.
    """

    def read(builder: Any, address: Any, offset: Any) -> Any:
        if halves:
            return widened_halves(builder, address, offset, by_machine)
        return loaded(builder, address, offset, EIGHT_FLOATS, 4)

    def typed(
        typing: Any, weight: Any, pairs: Any, many: Any, soon: Any, scales: Any, minimums: Any, total: Any, out: Any,
        half: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            sums = pair_sums(builder, args[:4], vectors, ahead, avx2)
            scale_tile(builder, args[4:], sums, minimum, read, 2 if halves else 4, ahead)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return intrinsic(typed)


def tiles_of(halves: bool, ahead: bool) -> Any:
    """Whole tiles of a group's `n` bytes: ``(weight, pairs, many, soon, scales, minimums, low, total, out, half, n)``.

    `low` says whether there are minimums. Returns for how many bytes there were tiles.
    """
    wide_low, wide, narrow_low, narrow = (group_tile(v, m, halves, ahead) for v in (2, 1) for m in (True, False))
    size = 2 if halves else 4

    @compile
    def add_tiles(weight, pairs, many, soon, scales, minimums, low, total, out, half, n):  # type: ignore[no-untyped-def]
        j = np.int64(0)
        while j + NARROW <= n:
            w, s, m, o = weight + j, scales + size * j, minimums + size * j, out + 4 * j
            if j + WIDE <= n:
                if low:
                    wide_low(w, pairs, many, soon, s, m, total, o, half)
                else:
                    wide(w, pairs, many, soon, s, m, total, o, half)
                j += WIDE
            else:
                if low:
                    narrow_low(w, pairs, many, soon, s, m, total, o, half)
                else:
                    narrow(w, pairs, many, soon, s, m, total, o, half)
                j += NARROW
        return j

    return add_tiles


@compile
def _list_count(lists, at, entries, row, count):  # type: ignore[no-untyped-def]
    """A count of the weight row that begins at `row` joins the list at `at`, in parts of at most `MOST_COUNT`.

    Returns how many entries there are then; two of them are a pair, and the last one alone has a second count of 0.
    """
    while count != 0:
        part = min(max(count, -MOST_COUNT), MOST_COUNT)
        place, both = U(at + ENTRY * (entries >> 1)), (part & 255) * 0x10001
        if entries & 1:
            lists[place + U(1)] = row
            lists[place + U(2)] |= both << 8
        else:
            lists[place], lists[place + U(1)], lists[place + U(2)] = row, row, both
        entries += 1
        count -= part
    return entries
