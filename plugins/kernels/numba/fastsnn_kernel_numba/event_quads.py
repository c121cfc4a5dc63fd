"""One row of spikes times INT8 weights with VNNI: the weight rows of four events are interleaved in registers.

    sums[o] += Σ_e c_e · (W[i_e, o] + 128)      64 columns, eight events per pass; Σ_e 128 c_e comes off at the end

An instruction multiplies four unsigned bytes with four signed ones and adds the products to a sum of 32 bits; here the
bytes of a column lie in four rows, so they are interleaved first: 28 operations for 512 weights, and one more per cache
line to ask for the rows of later events. Products in 16 bits (`fastsnn_kernel_numba.gemm_events`) take twice as long.
Sums are whole numbers modulo 2^32 and exact, as long as their true values fit. Counts beyond 127 are added by
themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.dense_pairs import I8, I16, I32, I64, lanes, pointer
from fastsnn_kernel_numba.gemm_events import PAIR, _add_wide
from fastsnn_kernel_numba.layout import INT8, INT32
from fastsnn_kernel_numba.machine import VNNI_512
from fastsnn_kernel_numba.numba_runtime import compile

U = np.uint64
WIDE_COLUMNS = 64  # columns of a vector
EIGHT = 8  # events per pass
DISTANCE = 3  # passes by which weight rows are asked for in advance
BYTES_64, WORDS_32, INTS_16 = ir.VectorType(I8, 64), ir.VectorType(I16, 32), ir.VectorType(I32, 16)


def interleaving(size: int, half: int) -> Any:
    """A shuffle that takes turns between two vectors of `size` numbers, from the lower or upper halves of 128 bits."""
    lane = size // 4
    return lanes(lane * (i // lane) + half * lane // 2 + i % lane // 2 + size * (i % 2) for i in range(size))


def function(builder: Any, name: str, result: Any, *of: Any) -> Any:
    """An intrinsic of LLVM."""
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, of), name)


def four_sums(builder: Any, rows: list[Any], counts: Any, sums: list[Any]) -> list[Any]:
    """`sums` and the products of four rows of 64 bytes with their counts, columns 0 … 3, 4 … 7, … of every 16."""
    found, name = [], "llvm.x86.avx512.vpdpbusd.512"
    for high in range(2):
        mask = interleaving(64, high)
        pairs = [builder.bitcast(builder.shuffle_vector(rows[i], rows[i + 1], mask), WORDS_32) for i in (0, 2)]
        for half in range(2):
            fours = builder.bitcast(builder.shuffle_vector(*pairs, interleaving(32, half)), INTS_16)
            add = function(builder, name, INTS_16, INTS_16, INTS_16, INTS_16)
            found.append(builder.call(add, [sums[2 * high + half], fours, counts]))
    return found


@intrinsic
def _add_eight(typing: Any, rows: Any, ahead: Any, counts: Any, sums: Any, n: Any) -> Any:
    """Eight weight rows (addresses) times two fours of counts, onto sums of 32 bits of `n` columns, 64 at least.

    The same columns of the rows `ahead` are asked for. Sums of the last columns are those of the last 64.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, soon, both = (
            [builder.extract_value(args[i], r) for r in range(many)] for i, many in ((0, 8), (1, 8), (2, 2))
        )
        none, flip, width = ir.Constant(INTS_16, ir.Undefined), ir.Constant(BYTES_64, [-128] * 64), ir.Constant(I64, 64)
        counted = [
            builder.shuffle_vector(builder.insert_element(none, c, ir.Constant(I32, 0)), none, lanes([0] * 16))
            for c in both
        ]
        last, hint = builder.sub(args[4], width), [ir.Constant(I32, k) for k in (0, 2, 1)]
        ask = function(builder, "llvm.prefetch.p0", ir.VoidType(), I8.as_pointer(), I32, I32, I32)
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), args[4], width, intp=I64) as (j, _):
            off = builder.select(builder.icmp_signed("<", j, last), j, last)
            places = [
                pointer(
                    builder,
                    builder.add(args[3], builder.add(builder.shl(j, ir.Constant(I64, 2)), ir.Constant(I64, 64 * q))),
                    INTS_16,
                )
                for q in range(4)
            ]
            found = [builder.load(place, align=4) for place in places]
            for four in range(2):
                bytes_ = [
                    builder.xor(
                        builder.load(pointer(builder, builder.add(at[4 * four + r], off), BYTES_64), align=1), flip
                    )
                    for r in range(4)
                ]
                for r in range(4):
                    builder.call(ask, [pointer(builder, builder.add(soon[4 * four + r], off), I8), *hint])
                found = four_sums(builder, bytes_, counted[four], found)
            for place, numbers in zip(places, found, strict=True):
                builder.store(numbers, place, align=4)
        return context.get_dummy_value()

    i64, eight = types.int64, types.UniTuple(types.int64, 8)
    return types.void(eight, eight, types.UniTuple(types.int32, 2), i64, i64), generate


@intrinsic
def _ordered(typing: Any, sums: Any, out: Any, less: Any) -> Any:
    """64 sums of `_add_eight` minus `less`, in the order of their columns."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        none = ir.Constant(INTS_16, ir.Undefined)
        off = builder.insert_element(none, args[2], ir.Constant(I32, 0))
        off = builder.shuffle_vector(off, none, lanes([0] * 16))
        found = [
            builder.sub(
                builder.load(pointer(builder, builder.add(args[0], ir.Constant(I64, 64 * q)), INTS_16), align=4), off
            )
            for q in range(4)
        ]
        for lane in range(4):
            pick = lanes([4 * lane + i for i in range(4)] + [16 + 4 * lane + i for i in range(4)])
            halves = [builder.shuffle_vector(found[i], found[i + 1], pick) for i in (0, 2)]
            place = pointer(builder, builder.add(args[1], ir.Constant(I64, 64 * lane)), INTS_16)
            builder.store(builder.shuffle_vector(*halves, lanes(range(16))), place, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int32), generate


@compile
def _row_place(base, index, k, last, tall):  # type: ignore[no-untyped-def]
    """The address of the weights of event k, or of the last one."""
    return base + np.int64(index[U(min(k, last))]) * tall


@compile
def _count_byte(count, k, end):  # type: ignore[no-untyped-def]
    """The count of event k as a byte, 0 behind the end."""
    return np.int32(count[U(k)]) & np.int32(255) if k < end else np.int32(0)


@compile
def _four_bytes(count, k, end):  # type: ignore[no-untyped-def]
    """Counts k … k + 3 as bytes of one number."""
    a, b = _count_byte(count, k, end), _count_byte(count, k + 1, end)
    c, d = _count_byte(count, k + 2, end), _count_byte(count, k + 3, end)
    return np.int32(a | (b << np.int32(8)) | (c << np.int32(16)) | (d << np.int32(24)))


@compile
def _accumulate_eights(at, index, count, first, end, tall, column, n, acc, sums, oo):  # type: ignore[no-untyped-def]
    """Sums of the events first … end of a row, outputs column … column + n, 64 or more, to `sums` from `oo` on.

    `at` is the address of the weights, `acc` that of room for `n` numbers of 32 bits, rounded up to whole 64.
    """
    last, total, bursts, base = end - 1, np.int32(0), False, at + column
    padded = (n + WIDE_COLUMNS - 1) // WIDE_COLUMNS * WIDE_COLUMNS
    room = view(acc, padded, INT32)
    for j in range(U(padded)):
        room[j] = 0
    for k in range(first, end, EIGHT):
        most, size = np.int32(0), np.int32(0)
        for q in range(U(k), U(min(k + EIGHT, end))):
            most, size = max(most, abs(count[q])), np.int32(size + count[q])
        if most > PAIR:
            bursts = True
            continue
        total, s = np.int32(total + size), k + EIGHT * DISTANCE
        rows = (
            _row_place(base, index, k, last, tall), _row_place(base, index, k + 1, last, tall),
            _row_place(base, index, k + 2, last, tall), _row_place(base, index, k + 3, last, tall),
            _row_place(base, index, k + 4, last, tall), _row_place(base, index, k + 5, last, tall),
            _row_place(base, index, k + 6, last, tall), _row_place(base, index, k + 7, last, tall),
        )  # fmt: skip
        ahead = (
            _row_place(base, index, s, last, tall), _row_place(base, index, s + 1, last, tall),
            _row_place(base, index, s + 2, last, tall), _row_place(base, index, s + 3, last, tall),
            _row_place(base, index, s + 4, last, tall), _row_place(base, index, s + 5, last, tall),
            _row_place(base, index, s + 6, last, tall), _row_place(base, index, s + 7, last, tall),
        )  # fmt: skip
        _add_eight(rows, ahead, (_four_bytes(count, k, end), _four_bytes(count, k + 4, end)), acc, np.int64(n))
    off, to = np.int32(total << np.int32(7)), sums.ctypes.data + 4 * oo
    for j in range(0, n, WIDE_COLUMNS):
        _ordered(acc + 4 * j, to + 4 * min(j, n - WIDE_COLUMNS), off)
    if bursts:
        weight = view(at, tall * (np.int64(index[U(last)]) + 1), INT8)
        for k in range(first, end, EIGHT):
            most = np.int32(0)
            for q in range(U(k), U(min(k + EIGHT, end))):
                most = max(most, abs(count[q]))
            for q in range(k, min(k + EIGHT, end) if most > PAIR else k):
                _add_wide(weight, U(np.int64(index[q]) * tall + column), count[q], sums, U(oo), U(n))


if VNNI_512:

    @compile
    def _eights(w, m, first, end, column, n, at, oo):  # type: ignore[no-untyped-def]
        """`_accumulate_eights` of the events of `w`, with the room from the address `at` on; False where it is not for
        them."""
        if n < WIDE_COLUMNS or w.row[0].wide:
            return False
        _accumulate_eights(m.address, w.index, w.count, first, end, m.outputs, column, n, at, w.sums, oo)
        return True

else:

    @compile
    def _eights(w, m, first, end, column, n, at, oo):  # type: ignore[no-untyped-def]
        """Without VNNI there is no such way."""
        return False
