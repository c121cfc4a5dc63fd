"""The twin of `fastsnn_integer.deterministic.attend_naive`: softmax attention in a fixed order, the same bits.

Scores are folded over channels with neighbouring keys side by side in vectors; values are added key by key, eight per
pass over the sums, which stay in the order of the keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from fastsnn_kernel_numba.deterministic import APART, ONE, ZERO, F, U, _as_float, _dot, _dots, _exp, _half_of
from fastsnn_kernel_numba.fold_vectors import SIZES, _sum_values
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat, scratch, workers
from fastsnn_modules.operands import guarded

KEYS = 64  # keys scored at a time
TILE = 8  # queries that go over the keys together
FEW = 4  # queries below which turning the keys round costs more than it saves


@intrinsic
def _bits(typing: Any, x: Any) -> Any:
    """The 32 bits of a float32, as a whole number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


@compile
def _highest(x, a, size, top):  # type: ignore[no-untyped-def]
    """The larger of max x and `top`; numbers below zero are ordered the other way round."""
    code = _bits(top) ^ ((_bits(top) >> np.int32(31)) & np.int32(0x7FFFFFFF))
    for i in range(U(size)):
        bits = _bits(x[a + i])
        code = max(code, np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))))
    return _as_float(np.int32(code ^ ((code >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@compile
def _gather(score, sa, values, va, stride, held, n, norm, out, oo):  # type: ignore[no-untyped-def]
    """Adds values (rows `stride` apart) of neighbouring keys, each times its weight, in order; the sum of weights."""
    j, eight = U(0), U(8)
    if n == SIZES[0] or n == SIZES[1] or n == SIZES[2]:
        at, row = score.ctypes.data + 4 * np.int64(sa), values.ctypes.data + 4 * np.int64(va)
        to = out.ctypes.data + 4 * np.int64(oo)
        return _sum_values(at, row, 4 * np.int64(stride), np.int64(held), np.int64(n), F(norm), to)
    while j + eight <= held:
        at, r0 = sa + j, va + j * stride
        w0, w1, w2, w3 = score[at], score[at + U(1)], score[at + U(2)], score[at + U(3)]
        w4, w5, w6, w7 = score[at + U(4)], score[at + U(5)], score[at + U(6)], score[at + U(7)]
        norm = (((norm + w0) + w1) + w2) + w3
        norm = (((norm + w4) + w5) + w6) + w7
        r1, r2, r3, r4 = r0 + stride, r0 + U(2) * stride, r0 + U(3) * stride, r0 + U(4) * stride
        r5, r6, r7 = r0 + U(5) * stride, r0 + U(6) * stride, r0 + U(7) * stride
        for i in range(n):
            part = (out[oo + i] + w0 * values[r0 + i]) + w1 * values[r1 + i]
            part = (part + w2 * values[r2 + i]) + w3 * values[r3 + i]
            part = (part + w4 * values[r4 + i]) + w5 * values[r5 + i]
            out[oo + i] = (part + w6 * values[r6 + i]) + w7 * values[r7 + i]
        j += eight
    while j < held:
        w0, r0 = score[sa + j], va + j * stride
        norm += w0
        for i in range(n):
            out[oo + i] = out[oo + i] + w0 * values[r0 + i]
        j += U(1)
    return norm


@Threaded
def _spans(allowed, rows, t_all, keys, spans, nw):  # type: ignore[no-untyped-def]
    """First and last key of every query (half open), and whether it may see all between them."""
    for worker in prange(nw):
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            b, t, low, high, seen = row // t_all, row % t_all, 0, keys, 0
            while low < keys and not allowed[b, t, low]:
                low += 1
            while high > low and not allowed[b, t, high - 1]:
                high -= 1
            for j in range(low, high):
                seen += np.int64(allowed[b, t, j])
            spans[row, 0], spans[row, 1], spans[row, 2] = low, high, seen == high - low


@compile
def _gather_allowed(every, allowed, query, low, n, score, sa, values, va, stride, wide, norm, out, oo):  # type: ignore[no-untyped-def]
    """As `_gather`, over those of `n` neighbouring keys from `low` on that the `query` (b, t) may see."""
    b, t = query
    if every:
        return _gather(score, sa, values, va, stride, n, U(wide), norm, out, oo)
    for j in range(n):
        if allowed[b, t, low + np.int64(j)]:
            norm = _gather(score, sa + j, values, va + j * stride, stride, U(1), U(wide), norm, out, oo)
    return norm


@compile
def _top(score, sa, allowed, b, t, low, n, whole, top):  # type: ignore[no-untyped-def]
    """The largest score of keys that may be seen, or `top`."""
    if whole:
        return _highest(score, sa, n, top)
    for j in range(n):
        if allowed[b, t, low + j] and score[sa + U(j)] > top:
            top = score[sa + U(j)]
    return top


@Threaded
def _attend(q, k, v, allowed, spans, shape, scale, memory, out, nw):  # type: ignore[no-untyped-def]
    """`TILE` queries at a time go over the keys block by block, so that all but the first read a block from L1."""
    own, part, turned, values, score, tops = memory
    b_all, t_all, keys, h_all, groups, size, wide = shape
    share, half, stride = h_all // groups, _half_of(size), U(groups * wide)
    room = (keys + KEYS - 1) // KEYS * KEYS
    for worker in prange(nw):
        oa, pa = U(worker * ((size + wide) * TILE + APART)), U(worker * (max(half, 1) * KEYS + APART))
        sa, ta, acc = U(worker * (room * TILE + APART)), U(worker * size * room), oa + U(size * TILE)
        va = U(worker * wide * keys)
        for task in range(worker * b_all * groups // nw, (worker + 1) * b_all * groups // nw):
            b, g = task // groups, task % groups
            if t_all >= FEW:
                for j in range(keys):
                    a, o = U(((b * keys + j) * groups + g) * size), ta + U(j // KEYS * KEYS * size + j % KEYS)
                    for i in range(U(size)):  # in blocks: channels a power of two apart would share few lines of L1
                        turned[o + i * U(KEYS)] = k[a + i]
                    a, o = U(((b * keys + j) * groups + g) * wide), va + U(j * wide)
                    for i in range(U(wide)):  # side by side: rows of a batch lie too far apart for L1 to hold a block
                        values[o + i] = v[a + i]
            for tile in range(0, t_all * share, TILE):
                begin, stop = keys, 0
                for x in range(tile, min(tile + TILE, t_all * share)):
                    t, m = x // share, x - tile
                    a = U(((b * t_all + t) * h_all + g * share + x % share) * size)
                    for i in range(U(size)):
                        own[oa + U(m * size) + i] = q[a + i] * scale
                    for i in range(U(wide)):
                        own[acc + U(m * wide) + i] = ZERO
                    tops[worker, m, 0], tops[worker, m, 1] = F(-np.inf), ZERO
                    begin, stop = min(begin, spans[b * t_all + t, 0]), max(stop, spans[b * t_all + t, 1])
                for block in range(begin // KEYS * KEYS, stop, KEYS):
                    for x in range(tile, min(tile + TILE, t_all * share)):
                        t, m = x // share, x - tile
                        row, o = b * t_all + t, oa + U(m * size)
                        low, high = max(spans[row, 0], block), min(spans[row, 1], block + KEYS)
                        if low >= high:
                            continue
                        at = sa + U(m * room)
                        if t_all >= FEW:
                            first, n = ta + U(block * size), high - block
                            _dots(own, o, turned, first, KEYS, n, size, half, part, pa, score, at + U(block))
                        else:
                            for j in range(low, high):
                                first = U(((b * keys + j) * groups + g) * size)
                                score[at + U(j)] = _dot(own, o, k, first, size, half, part, pa)
                        tops[worker, m, 0] = _top(
                            score, at + U(low), allowed, b, t, low, high - low, spans[row, 2], tops[worker, m, 0]
                        )
                for block in range(begin // KEYS * KEYS, stop, KEYS):
                    for x in range(tile, min(tile + TILE, t_all * share)):
                        t, m = x // share, x - tile
                        row, o = b * t_all + t, acc + U(m * wide)
                        low, high = max(spans[row, 0], block), min(spans[row, 1], block + KEYS)
                        if low >= high:
                            continue
                        at, n, top = sa + U(m * room + low), U(high - low), tops[worker, m, 0]
                        for j in range(n):
                            score[at + j] = _exp(score[at + j] - top)
                        norm, first = tops[worker, m, 1], va + U(low * wide)
                        if t_all < FEW:
                            first = U(((b * keys + low) * groups + g) * wide)
                            norm = _gather_allowed(
                                spans[row, 2], allowed, (b, t), low, n, score, at, v, first, stride, wide, norm, own, o
                            )
                        else:
                            every, apart = spans[row, 2], U(wide)
                            norm = _gather_allowed(
                                every, allowed, (b, t), low, n, score, at, values, first, apart, wide, norm, own, o
                            )
                        tops[worker, m, 1] = norm
                for x in range(tile, min(tile + TILE, t_all * share)):
                    t, m = x // share, x - tile
                    o, norm = U(((b * t_all + t) * h_all + g * share + x % share) * wide), tops[worker, m, 1]
                    norm = ONE if norm == ZERO else norm
                    for i in range(U(wide)):
                        out[o + i] = own[acc + U(m * wide) + i] / norm


@guarded("exact_attend")
def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Twin of `fastsnn_integer.deterministic.attend_naive`."""
    (b, t, h, size), (keys, groups, wide), nw = q.shape, (*k.shape[1:3], v.shape[-1]), workers()
    if not size or not wide:
        return NotImplemented
    out, allowed = torch.empty(b, t, h, wide), allowed.contiguous()  # any other layout is compiled anew
    room = -(-keys // KEYS) * KEYS
    own = scratch("attend_row", nw * ((size + wide) * TILE + APART), F)
    part = scratch("attend_part", nw * ((1 << (size - 1).bit_length()) * KEYS + APART), F)
    turned = scratch("attend_keys", nw * size * room + 1 if t >= FEW else 1, F)
    score = scratch("attend_score", nw * (room * TILE + APART), F)
    spans, tops = np.empty((b * t, 3), np.int64), np.empty((nw, 2 * TILE, 2), F)
    _spans.on(nw, allowed.numpy(), b * t, t, keys, spans)
    rows = (flat(x.contiguous()) for x in (q, k, v))
    shape = (b, t, keys, h, groups, size, wide)
    values = scratch("attend_values", nw * wide * keys + 1 if t >= FEW else 1, F)
    memory = own, part, turned, values, score, tops
    _attend.on(nw, *rows, allowed.numpy(), spans, shape, F(size**-0.5), memory, flat(out))
    return out
