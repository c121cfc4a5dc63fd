"""Dense INT8 products of several rows: pairs of inputs per instruction, in 16 bits as long as sums fit them.

Weights of `CHUNK` inputs are interleaved by pairs, once for all rows, and made unsigned (w + 128). For every row one
instruction then multiplies 16 pairs of weights with a pair of counts and adds the two products. A row's counts of a
chunk have Σ|c| <= `LEAST_ROOM`, so that 255 · Σ|c| < 2^15 and nothing leaves 16 bits (`_split_counts` leaves larger
counts to the events); Σ 128 c is taken off at the end. Everything is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from fastsnn_kernel_numba.numba_runtime import compile

U = np.uint64
CHUNK, PAIRS, GROUP = 32, 16, 32  # inputs, their pairs, columns that are interleaved together
LEAST_ROOM, LARGE = 128, 16  # Σ|c| of a chunk that 16 bits hold; counts beyond `LARGE` go first where they do not
AVX2 = bool(binding.get_host_cpu_features().get("avx2", False))
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


@intrinsic
def _interleave(typing: Any, first: Any, second: Any, to: Any) -> Any:
    """Weights of two inputs, 32 columns at two addresses, unsigned and by pairs: 64 bytes to the address `to`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        flip = ir.Constant(BYTES, [-128] * 32)
        a, b = (builder.xor(builder.load(pointer(builder, x, BYTES), align=1), flip) for x in args[:2])
        for place, mask in enumerate((LOW, HIGH)):
            at = builder.add(args[2], ir.Constant(I64, 32 * place))
            builder.store(builder.shuffle_vector(a, b, mask), pointer(builder, at, BYTES), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def product_tile(rows: int, avx2: bool) -> Any:
    """The products of `rows` rows with a chunk of a group, as an intrinsic ``(panel, counts, out)`` of addresses.

    `panel` has the group's pairs, 64 bytes each; `counts` and `out` are tuples of addresses: pairs of counts, each
    twice in 32 bits, and 32 sums in 32 bits to which the products are added.
    """

    def typed(typing: Any, panel: Any, counts: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, out_at = (builder_unpack(builder, args[i], rows) for i in (1, 2))
            sums: list[list[Any]] = [[None, None] for _ in range(rows)]
            for pair in range(PAIRS):
                weights = []
                for half in range(2):
                    place = builder.add(args[0], ir.Constant(I64, 64 * pair + 32 * half))
                    weights.append(builder.load(pointer(builder, place, BYTES), align=1))
                for r in range(rows):
                    place = builder.inttoptr(builder.add(at[r], ir.Constant(I64, 4 * pair)), I32.as_pointer())
                    one = builder.insert_element(
                        ir.Constant(INTS, ir.Undefined), builder.load(place, align=4), ir.Constant(I32, 0)
                    )
                    both = builder.shuffle_vector(one, ir.Constant(INTS, ir.Undefined), lanes([0] * 8))
                    counted = builder.bitcast(both, BYTES)
                    for half in range(2):
                        found = pair_products(builder, weights[half], counted, avx2)
                        before = sums[r][half]
                        sums[r][half] = found if before is None else builder.add(before, found)
            for r in range(rows):
                for eighth in range(4):  # columns 8 · eighth …: halves of LOW and HIGH in turn
                    short = sums[r][eighth % 2]
                    part = builder.shuffle_vector(
                        short, ir.Constant(SHORTS, ir.Undefined), lanes(range(8 * (eighth // 2), 8 * (eighth // 2) + 8))
                    )
                    place = pointer(builder, builder.add(out_at[r], ir.Constant(I64, 32 * eighth)), INTS)
                    builder.store(builder.add(builder.load(place, align=4), builder.sext(part, INTS)), place, align=4)
            return context.get_dummy_value()

        many = types.UniTuple(types.int64, rows)
        return types.void(types.int64, many, many), generate

    return intrinsic(typed)


def builder_unpack(builder: Any, value: Any, rows: int) -> list[Any]:
    """The members of a tuple of whole numbers."""
    return [builder.extract_value(value, r) for r in range(rows)]


_tile_4, _tile_2, _tile_1 = product_tile(4, AVX2), product_tile(2, AVX2), product_tile(1, AVX2)


@compile
def _pair_place(column):  # type: ignore[no-untyped-def]
    """Where a column's pair lies among the 64 bytes of a group's pair."""
    half, within = column // 16, column % 16
    return (0 if within < 8 else 32) + 16 * half + 2 * (within % 8)


@compile
def _pack_chunk(weight, at, first, inputs, tall, column, n, panel, panel_at):  # type: ignore[no-untyped-def]
    """Inputs first … first + CHUNK, columns column … column + n of a matrix (an array, and its address), by groups.

    Inputs beyond the last stand for any: their counts are 0.
    """
    groups = (n + GROUP - 1) // GROUP
    for g in range(groups):
        whole, to = n - g * GROUP >= GROUP, g * 64 * PAIRS
        for p in range(PAIRS):
            i = min(first + 2 * p, inputs - 1) * tall + column + g * GROUP
            j = min(first + 2 * p + 1, inputs - 1) * tall + column + g * GROUP
            if whole:
                _interleave(at + i, at + j, panel_at + to + 64 * p)
            else:
                for c in range(n - g * GROUP):
                    o = to + 64 * p + _pair_place(c)
                    panel[o] = weight[i + c] ^ np.int8(-128)
                    panel[o + 1] = weight[j + c] ^ np.int8(-128)


@compile
def _multiply_group(panel, counts, rows, own, width, out):  # type: ignore[no-untyped-def]
    """One group of a chunk for all rows; all arguments but `rows` are addresses, `counts` an array of them.

    Row r's sums are at out + 4 · width · r.
    """
    r = 0
    while r + 3 <= rows:
        last = min(r + 3, rows - 1)
        spare = out + 4 * width * last if r + 3 < rows else own
        places = (out + 4 * width * r, out + 4 * width * (r + 1), out + 4 * width * (r + 2), spare)
        _tile_4(panel, (counts[r], counts[r + 1], counts[r + 2], counts[last]), places)
        r += 4
    if r + 2 <= rows:
        _tile_2(panel, (counts[r], counts[r + 1]), (out + 4 * width * r, out + 4 * width * (r + 1)))
    elif r < rows:
        _tile_1(panel, (counts[r],), (out + 4 * width * r,))


@compile
def _split_counts(counts, size, low, narrow, pairs, index, count):  # type: ignore[no-untyped-def]
    """Counts of a row by pairs into `low`, as `product_tile` takes them; those beyond 16 bits are listed as events.

    `narrow` and `pairs` are one piece of memory, as bytes and as 16 bits. Returns how many events there are, and the
    sum of all other counts.
    """
    events, total, padded = 0, np.int64(0), (size + CHUNK - 1) // CHUNK * CHUNK
    for i in range(U(size)):
        narrow[i] = np.int8(counts[i])
    for i in range(size, padded):
        narrow[i] = 0
    for first in range(0, size, CHUNK):
        last, weight = min(first + CHUNK, size), np.int64(0)
        for i in range(U(first), U(last)):
            weight += abs(np.int64(counts[i]))
        if weight > LEAST_ROOM:
            room = np.int64(LEAST_ROOM)
            for i in range(first, last):
                c = np.int64(counts[i])
                if abs(c) > LARGE or abs(c) > room:
                    index[events], count[events] = np.int32(i), np.int32(c)
                    events += 1
                    narrow[i] = 0
                else:
                    room -= abs(c)
    for i in range(U(padded)):
        total += np.int64(narrow[i])
    for p in range(U(padded // 2)):
        both = np.int32(pairs[p]) & np.int32(0xFFFF)
        low[p] = both | (both << np.int32(16))
    return events, total
