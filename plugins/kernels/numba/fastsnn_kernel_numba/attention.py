"""The twin of `fastsnn_core.ops.exact.attend_naive`: softmax attention in a fixed order, the same bits.

Scores are folded over channels with neighbouring keys side by side in vectors; values are added key by key, four per
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

from fastsnn_kernel_numba.exact import ONE, ZERO, F, U, _as_float, _dot, _exp, _half_of
from fastsnn_kernel_numba.launch import Threaded, compile, flat, scratch, workers

KEYS = 64  # keys scored at a time
FEW = 4  # queries below which turning the keys round costs more than it saves


@compile
def _dots_by_8(q, a, turned, b, keys, n, half, part, at):  # type: ignore[no-untyped-def]
    """The first four of the halvings that `_dots` does, in registers: of 2 · half channels, half / 8 rows are left."""
    s = half // U(8)
    for i in range(s):
        o, h = at + i * n, half
        x, y = a + i, b + i * keys
        d, e = s * keys, half * keys
        q0, q1, q2, q3 = q[x], q[x + s], q[x + U(2) * s], q[x + U(3) * s]
        q4, q5, q6, q7 = q[x + U(4) * s], q[x + U(5) * s], q[x + U(6) * s], q[x + U(7) * s]
        p0, p1, p2, p3 = q[x + h], q[x + h + s], q[x + h + U(2) * s], q[x + h + U(3) * s]
        p4, p5, p6, p7 = q[x + h + U(4) * s], q[x + h + U(5) * s], q[x + h + U(6) * s], q[x + h + U(7) * s]
        y1, y2, y3, y4, y5 = y + d, y + U(2) * d, y + U(3) * d, y + U(4) * d, y + U(5) * d
        y6, y7 = y + U(6) * d, y + U(7) * d
        for j in range(n):
            k0 = q0 * turned[y + j] + p0 * turned[y + e + j]
            k4 = q4 * turned[y4 + j] + p4 * turned[y4 + e + j]
            k2 = q2 * turned[y2 + j] + p2 * turned[y2 + e + j]
            k6 = q6 * turned[y6 + j] + p6 * turned[y6 + e + j]
            k1 = q1 * turned[y1 + j] + p1 * turned[y1 + e + j]
            k5 = q5 * turned[y5 + j] + p5 * turned[y5 + e + j]
            k3 = q3 * turned[y3 + j] + p3 * turned[y3 + e + j]
            k7 = q7 * turned[y7 + j] + p7 * turned[y7 + e + j]
            part[o + j] = ((k0 + k4) + (k2 + k6)) + ((k1 + k5) + (k3 + k7))


@compile
def _dots(q, a, turned, b, keys, n, size, half, part, at, score, c):  # type: ignore[no-untyped-def]
    """q · k of `n` neighbouring keys out of `keys`, stored channel by channel: a vector of keys per operation."""
    n = U(n)
    if half == 0:
        for j in range(n):
            score[c + j] = q[a] * turned[b + j]
        return
    if half % 8 == 0 and size == 2 * half:
        _dots_by_8(q, a, turned, b, U(keys), n, U(half), part, at)
    for i in range(0 if half % 8 or size != 2 * half else half, half):
        o, row, low, high = at + U(i) * n, b + U(i * keys), q[a + U(i)], ZERO
        if i + half < size:
            high, other = q[a + U(i + half)], b + U((i + half) * keys)
            for j in range(n):
                part[o + j] = low * turned[row + j] + high * turned[other + j]
        else:
            for j in range(n):
                part[o + j] = low * turned[row + j] + ZERO
    width = half // 8 if half % 8 == 0 and size == 2 * half else half
    while width > 1:
        width //= 2
        for i in range(U(width) * n):
            part[at + i] = part[at + i] + part[at + U(width) * n + i]
    for j in range(n):
        score[c + j] = part[at + j]


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
    j, four = U(0), U(4)
    while j + four <= held:
        w0, w1, w2, w3 = score[sa + j], score[sa + j + U(1)], score[sa + j + U(2)], score[sa + j + U(3)]
        norm = (((norm + w0) + w1) + w2) + w3
        r0 = va + j * stride
        r1, r2, r3 = r0 + stride, r0 + stride + stride, r0 + stride + stride + stride
        for i in range(n):
            part = (out[oo + i] + w0 * values[r0 + i]) + w1 * values[r1 + i]
            out[oo + i] = (part + w2 * values[r2 + i]) + w3 * values[r3 + i]
        j += four
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


@Threaded
def _attend(q, k, v, allowed, spans, shape, scale, own, part, turned, score, out, nw):  # type: ignore[no-untyped-def]
    b_all, t_all, keys, h_all, groups, size, wide = shape
    share, half = h_all // groups, _half_of(size)
    for worker in prange(nw):
        room = (keys + KEYS - 1) // KEYS * KEYS
        oa, pa, sa = U(worker * (size + wide)), U(worker * max(half, 1) * KEYS), U(worker * room)
        ta = U(worker * size * room)
        acc = oa + U(size)
        for task in range(worker * b_all * groups // nw, (worker + 1) * b_all * groups // nw):
            b, g = task // groups, task % groups
            if t_all >= FEW:
                for j in range(keys):
                    a, o = U(((b * keys + j) * groups + g) * size), ta + U(j // KEYS * KEYS * size + j % KEYS)
                    for i in range(U(size)):  # in blocks: channels a power of two apart would share few lines of L1
                        turned[o + i * U(KEYS)] = k[a + i]
            for t in range(t_all):
                low, high, whole = spans[b * t_all + t, 0], spans[b * t_all + t, 1], spans[b * t_all + t, 2]
                for h in range(g * share, (g + 1) * share):
                    a = U(((b * t_all + t) * h_all + h) * size)
                    o = U(((b * t_all + t) * h_all + h) * wide)
                    for i in range(U(size)):
                        own[oa + i] = q[a + i] * scale
                    for i in range(U(wide)):
                        own[acc + i] = ZERO
                    top = F(-np.inf)
                    for block in range(low // KEYS * KEYS, high, KEYS):
                        j, end = max(low, block), min(block + KEYS, high)
                        if t_all >= FEW:
                            first = ta + U(block * size)
                            _dots(own, oa, turned, first, KEYS, end - block, size, half, part, pa, score, sa + U(block))
                        else:
                            for m in range(j, end):
                                at = U(((b * keys + m) * groups + g) * size)
                                score[sa + U(m)] = _dot(own, oa, k, at, size, half, part, pa)
                        if whole:
                            top = _highest(score, sa + U(j), end - j, top)
                            continue
                        for m in range(j, end):
                            if allowed[b, t, m] and score[sa + U(m)] > top:
                                top = score[sa + U(m)]
                    for j in range(U(low), U(high)):
                        score[sa + j] = _exp(score[sa + j] - top)
                    norm = ZERO
                    if whole:
                        first, stride = U(((b * keys + low) * groups + g) * wide), U(groups * wide)
                        at, n = sa + U(low), U(high - low)
                        norm = _gather(score, at, v, first, stride, n, U(wide), norm, own, acc)
                    else:
                        for j in range(low, high):
                            if allowed[b, t, j]:
                                first = U(((b * keys + j) * groups + g) * wide)
                                norm = _gather(score, sa + U(j), v, first, U(0), U(1), U(wide), norm, own, acc)
                    norm = ONE if norm == ZERO else norm
                    for i in range(U(wide)):
                        out[o + i] = own[acc + i] / norm


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Twin of `fastsnn_core.ops.exact.attend_naive`."""
    (b, t, h, size), (keys, groups, wide), nw = q.shape, (*k.shape[1:3], v.shape[-1]), workers()
    if not size or not wide:
        return NotImplemented
    out = torch.empty(b, t, h, wide)
    own = scratch("attend_row", nw * (size + wide), F)
    part = scratch("attend_part", nw * (1 << (size - 1).bit_length()) * KEYS, F)
    room = -(-keys // KEYS) * KEYS
    turned = scratch("attend_keys", nw * size * room + 1 if t >= FEW else 1, F)
    score = scratch("attend_score", nw * room + 1, F)
    spans = np.empty((b * t, 3), np.int64)
    _spans(allowed.numpy(), b * t, t, keys, spans)
    rows = (flat(x.contiguous()) for x in (q, k, v))
    shape = (b, t, keys, h, groups, size, wide)
    _attend(*rows, allowed.numpy(), spans, shape, F(size**-0.5), own, part, turned, score, flat(out))
    return out
