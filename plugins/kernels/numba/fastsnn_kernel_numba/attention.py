"""The twin of `fastsnn_core.ops.exact.attend_naive`: softmax attention in a fixed order, the same bits.

Scores are folded over channels with neighbouring keys side by side in vectors; values are added key by key, four per
pass over the sums, which stay in the order of the keys.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_kernel_numba.exact import ONE, ZERO, F, U, _dot, _exp, _half_of
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


@Threaded
def _attend(q, k, v, allowed, shape, scale, own, part, turned, score, out, nw):  # type: ignore[no-untyped-def]
    b_all, t_all, keys, h_all, groups, size, wide = shape
    share, half = h_all // groups, _half_of(size)
    for worker in prange(nw):
        oa, pa, sa = U(worker * (size + wide)), U(worker * max(half, 1) * KEYS), U(worker * keys)
        ta = U(worker * size * keys)
        acc = oa + U(size)
        for task in range(worker * b_all * groups // nw, (worker + 1) * b_all * groups // nw):
            b, g = task // groups, task % groups
            if t_all >= FEW:
                for j in range(keys):
                    a = U(((b * keys + j) * groups + g) * size)
                    for i in range(U(size)):
                        turned[ta + i * U(keys) + U(j)] = k[a + i]
            for t in range(t_all):
                low, high = keys, 0
                for j in range(keys):
                    if allowed[b, t, j]:
                        low, high = min(low, j), j + 1
                for h in range(g * share, (g + 1) * share):
                    a = U(((b * t_all + t) * h_all + h) * size)
                    o = U(((b * t_all + t) * h_all + h) * wide)
                    for i in range(U(size)):
                        own[oa + i] = q[a + i] * scale
                    for i in range(U(wide)):
                        own[acc + i] = ZERO
                    top = F(-np.inf)
                    for j in range(low, high, KEYS):
                        n = min(KEYS, high - j)
                        if t_all >= FEW:
                            _dots(own, oa, turned, ta + U(j), keys, n, size, half, part, pa, score, sa + U(j))
                        else:
                            for m in range(j, j + n):
                                at = U(((b * keys + m) * groups + g) * size)
                                score[sa + U(m)] = _dot(own, oa, k, at, size, half, part, pa)
                        for m in range(j, j + n):
                            if allowed[b, t, m] and score[sa + U(m)] > top:
                                top = score[sa + U(m)]
                    for j in range(U(low), U(high)):
                        score[sa + j] = _exp(score[sa + j] - top)
                    norm, j = ZERO, low
                    while j < high:
                        if (
                            j + 4 <= high
                            and allowed[b, t, j]
                            and allowed[b, t, j + 1]
                            and allowed[b, t, j + 2]
                            and allowed[b, t, j + 3]
                        ):
                            w0, w1, w2, w3 = (
                                score[sa + U(j)],
                                score[sa + U(j + 1)],
                                score[sa + U(j + 2)],
                                score[sa + U(j + 3)],
                            )
                            norm = (((norm + w0) + w1) + w2) + w3
                            r0, r = U(((b * keys + j) * groups + g) * wide), U(groups * wide)
                            for i in range(U(wide)):
                                held = (own[acc + i] + w0 * v[r0 + i]) + w1 * v[r0 + r + i]
                                held = (held + w2 * v[r0 + r + r + i]) + w3 * v[r0 + r + r + r + i]
                                own[acc + i] = held
                            j += 4
                            continue
                        if allowed[b, t, j]:
                            w, at = score[sa + U(j)], U(((b * keys + j) * groups + g) * wide)
                            norm += w
                            for i in range(U(wide)):
                                own[acc + i] = own[acc + i] + w * v[at + i]
                        j += 1
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
    turned = scratch("attend_keys", nw * size * keys + 1 if t >= FEW else 1, F)
    score = scratch("attend_score", nw * keys + 1, F)
    rows = (flat(x.contiguous()) for x in (q, k, v))
    shape = (b, t, keys, h, groups, size, wide)
    _attend(*rows, allowed.numpy(), shape, F(size**-0.5), own, part, turned, score, flat(out))
    return out
