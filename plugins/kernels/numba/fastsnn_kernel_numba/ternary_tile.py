"""Sums of a tile of ternary weights in registers: two events and 32 weights per instruction.

    sums_o += Σ_e c_e u_eo          u = t + 1 in {0, 1, 2}, so that Σ_e c_e t_eo = Σ_e c_e u_eo - Σ_e c_e

A tile is 32 bytes of every weight row: outputs of four quarters. The bytes of two events are interleaved; a mask leaves
one code of every byte, in its place (u or 4 u), and one instruction multiplies 16 pairs of them with a pair of counts
and adds the two products. Sums of 4 u are shifted back at the end, which is exact. They stay in registers, 16 bits
wide, for one list of pairs: 12 · Σ|c| must stay below 2^15 (`TERNARY_ROOM`), whatever the bytes are.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsnn_kernel_numba.dense_pairs import (
    BYTES,
    HIGH,
    I32,
    I64,
    INTS,
    LOW,
    SHORTS,
    lanes,
    pair_products,
    pointer,
)
from fastsnn_kernel_numba.four_bit_tile import ENTRY, fetch_line, loaded, repeated
from fastsnn_kernel_numba.machine import AVX2

TERNARY_TILE, QUARTERS = 32, 4  # bytes of a tile; outputs of a byte
TERNARY_ROOM = (1 << 15) // 12  # Σ|c| of a list below which 16 bits hold Σ c · 4 u, even of codes that nobody writes


def ternary_tile(ahead: bool, avx2: bool = AVX2) -> Any:
    """A list's part of a tile, as an intrinsic ``(weight, pairs, many, soon, soon_pairs, sums)``.

    Addresses of the first weight row at the tile's column, of a list and its length, of what is read next (with `ahead`
    its lines are asked for), and of 128 sums in 32 bits, quarter after quarter, to which the products are added.
    """

    def typed(typing: Any, weight: Any, pairs: Any, many: Any, soon: Any, soon_pairs: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            sums_of_list(builder, args, ahead, avx2)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return intrinsic(typed)


def sums_of_list(builder: Any, args: Any, ahead: bool, avx2: bool) -> None:
    """The code of a tile."""
    weight, pairs, many, soon, soon_pairs, to = args
    zero, four, two = (ir.Constant(SHORTS, [n] * 16) for n in (0, 4, 2))
    masks = [ir.Constant(BYTES, [n] * 32) for n in (3, 12)]
    sums = [cgutils.alloca_once_value(builder, zero) for _ in range(2 * QUARTERS)]
    with cgutils.for_range(builder, many, intp=I64) as loop:
        place = builder.mul(loop.index, I64(8 * ENTRY))
        entry, behind = builder.add(pairs, place), builder.add(soon_pairs, place)
        first, second = (loaded(builder, entry, I64(at), I64, 8) for at in (0, 8))
        counts = builder.bitcast(repeated(builder, loaded(builder, entry, I64(16), I32, 8), INTS), BYTES)
        for at in (0, 8) if ahead else ():
            fetch_line(builder, builder.add(soon, loaded(builder, behind, I64(at), I64, 8)))
        rows = [loaded(builder, weight, row, BYTES) for row in (first, second)]
        for part, order in enumerate((LOW, HIGH)):
            both = builder.shuffle_vector(*rows, order)
            upper = builder.bitcast(builder.lshr(builder.bitcast(both, SHORTS), four), BYTES)
            for quarter in range(QUARTERS):
                codes = builder.and_((both, upper)[quarter // 2], masks[quarter % 2])
                total, found = sums[2 * quarter + part], pair_products(builder, codes, counts, avx2)
                builder.store(builder.add(builder.load(total), found), total)
    none = ir.Constant(SHORTS, ir.Undefined)
    for quarter in range(QUARTERS):
        halves = [builder.load(sums[2 * quarter + part]) for part in range(2)]
        if quarter % 2:
            halves = [builder.ashr(half, two) for half in halves]
        for eighth in range(4):  # outputs 8 · eighth …: halves of the two interleaved vectors in turn
            lane = 8 * (eighth // 2)
            short = builder.shuffle_vector(halves[eighth % 2], none, lanes(range(lane, lane + 8)))
            at = pointer(builder, builder.add(to, I64(4 * (TERNARY_TILE * quarter + 8 * eighth))), INTS)
            builder.store(builder.add(builder.load(at, align=4), builder.sext(short, INTS)), at, align=4)
