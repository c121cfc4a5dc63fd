"""Dot products in the fixed order of `fastsnn_integer.deterministic`, and sums of values, in vectors of 16 float32.

    score_j = T(0, 1),   T(i, w) = T(i, 2 w) + T(i + w, 2 w),   T(i, K/2) = q_i k_ij + q_{i+K/2} k_{i+K/2, j}
    out     = (… ((out + w_0 v_0) + w_1 v_1) …),   norm likewise

For heads of `SIZES` channels the whole tree is written out, so that nothing between its leaves and its root goes
through memory: twice as fast as halving rows in memory. No operation is reordered or contracted.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastsnn_kernel_numba.dense_pairs import I32, I64, pointer
from fastsnn_kernel_numba.machine import machine_has
from fastsnn_kernel_numba.numba_runtime import compile

SIZES = (32, 64, 128)  # channels of a head
WIDTH = 16  # numbers of a vector
PAIRED = 2 if machine_has("avx512f") else 1  # vectors whose sums fit in registers
FLOAT32 = ir.FloatType()
VECTOR = ir.VectorType(FLOAT32, WIDTH)


def splat(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    none = ir.Constant(VECTOR, ir.Undefined)
    one = builder.insert_element(none, number, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(I32, WIDTH), [0] * WIDTH))


def folded_products(size: int, many: int) -> Any:
    """``(q, keys, stride, score)``, addresses and bytes from channel to channel: `many` vectors of scores."""

    def typed(typing: Any, q: Any, keys: Any, stride: Any, score: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def product(channel: int) -> list[Any]:
                at = builder.add(args[0], ir.Constant(I64, 4 * channel))
                number = splat(builder, builder.load(pointer(builder, at, FLOAT32), align=4))
                row = builder.add(args[1], builder.mul(args[2], ir.Constant(I64, channel)))
                found = []
                for v in range(many):
                    key = pointer(builder, builder.add(row, ir.Constant(I64, 4 * WIDTH * v)), VECTOR)
                    found.append(builder.fmul(number, builder.load(key, align=4)))
                return found

            def added(left: list[Any], right: list[Any]) -> list[Any]:
                return [builder.fadd(a, b) for a, b in zip(left, right, strict=True)]

            def tree(i: int, width: int) -> list[Any]:
                if 2 * width == size:
                    return added(product(i), product(i + width))
                return added(tree(i, 2 * width), tree(i + width, 2 * width))

            for v, numbers in enumerate(tree(0, 1)):
                to = builder.add(args[3], ir.Constant(I64, 4 * WIDTH * v))
                builder.store(numbers, pointer(builder, to, VECTOR), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return intrinsic(typed)


def summed_values(size: int) -> Any:
    """``(score, values, stride, held, norm, out)``: `held` values of `size` numbers, `stride` bytes apart, are added to
    `out`, and their weights to `norm`, which is returned."""

    def typed(typing: Any, score: Any, values: Any, stride: Any, held: Any, norm: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            parts = size // WIDTH
            to = [pointer(builder, builder.add(args[5], ir.Constant(I64, 4 * WIDTH * v)), VECTOR) for v in range(parts)]
            sums = [cgutils.alloca_once_value(builder, builder.load(at, align=4)) for at in to]
            total = cgutils.alloca_once_value(builder, args[4])
            with cgutils.for_range(builder, args[3], intp=I64) as loop:
                at = builder.add(args[0], builder.mul(loop.index, ir.Constant(I64, 4)))
                weight = builder.load(pointer(builder, at, FLOAT32), align=4)
                builder.store(builder.fadd(builder.load(total), weight), total)
                many, row = splat(builder, weight), builder.add(args[1], builder.mul(loop.index, args[2]))
                for v in range(parts):
                    value = pointer(builder, builder.add(row, ir.Constant(I64, 4 * WIDTH * v)), VECTOR)
                    more = builder.fmul(many, builder.load(value, align=4))
                    builder.store(builder.fadd(builder.load(sums[v]), more), sums[v])
            for v in range(parts):
                builder.store(builder.load(sums[v]), to[v], align=4)
            return builder.load(total)

        return types.float32(*[types.int64] * 4, types.float32, types.int64), generate

    return intrinsic(typed)


_products_32, _products_64, _products_128 = (folded_products(size, PAIRED) for size in SIZES)
_product_32, _product_64, _product_128 = (folded_products(size, 1) for size in SIZES)
_values_32, _values_64, _values_128 = (summed_values(size) for size in SIZES)


@compile
def _fold_keys(q, keys, stride, n, size, score):  # type: ignore[no-untyped-def]
    """Scores of `n` keys side by side, whole vectors of them; addresses, and bytes from channel to channel. False where
    heads have another size."""
    if n % WIDTH or (size != SIZES[0] and size != SIZES[1] and size != SIZES[2]):
        return False
    j, step = 0, PAIRED * WIDTH
    while j < n:
        at, to, two = keys + 4 * j, score + 4 * j, j + step <= n
        if size == SIZES[0]:
            if two:
                _products_32(q, at, stride, to)
            else:
                _product_32(q, at, stride, to)
        elif size == SIZES[1]:
            if two:
                _products_64(q, at, stride, to)
            else:
                _product_64(q, at, stride, to)
        elif two:
            _products_128(q, at, stride, to)
        else:
            _product_128(q, at, stride, to)
        j += step if two else WIDTH
    return True


@compile
def _sum_values(score, values, stride, held, n, norm, out):  # type: ignore[no-untyped-def]
    """`held` values of `n` numbers, one of `SIZES`, times their weights are added to `out`; `norm` and the weights."""
    if n == SIZES[0]:
        return _values_32(score, values, stride, held, norm, out)
    if n == SIZES[1]:
        return _values_64(score, values, stride, held, norm, out)
    return _values_128(score, values, stride, held, norm, out)
