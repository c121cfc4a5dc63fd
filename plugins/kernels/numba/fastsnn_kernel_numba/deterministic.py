"""Twins of `fastsnn_integer.deterministic`: the same single operations in the same order, so the same bits.

Nothing here may be reordered, contracted to a fused multiply-add or compiled with fast-math (Numba does neither unless
asked). Loops run over numbers that do not meet: channels of a row while folding, keys while scoring, values while
summing; those the compiler makes vectors of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from fastsnn_integer import deterministic
from fastsnn_kernel_numba.buffer_pool import empty
from fastsnn_kernel_numba.fold_vectors import _fold_keys
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat, prefetch, scratch, workers
from fastsnn_modules.operands import guarded

U, F = np.uint64, np.float32
ZERO, HALF, ONE, TWO = F(0), F(0.5), F(1), F(2)
LOWEST, HIGHEST = map(F, deterministic.ROOM)
LOG2E, LN2_HIGH, LN2_LOW = map(F, (deterministic.LOG2E, deterministic.LN2_HIGH, deterministic.LN2_LOW))
T7, T6, T5, T4, T3, T2, T1, T0 = map(F, deterministic.TAYLOR)
A15, A13, A11, A9, A7, A5, A3, A1 = map(F, deterministic.ATANH)
E5, E4, E3, E2, E1 = map(F, deterministic.ERF)
ERF_P, ROOT_HALF, GELU, CUBE = map(F, (deterministic.ERF_P, deterministic.ROOT_HALF, deterministic.GELU, 0.044715))
SOON = 3  # tokens that a scan asks for in advance
APART = 16  # numbers between the memory of two workers: no cache line belongs to both
# Codes of what has compiled code; what else `fastsnn_integer.deterministic` may have is left to its naive twin.
ACTIVATIONS = {
    "exp": 0,
    "sigmoid": 1,
    "silu": 2,
    "gelu": 3,
    "gelu_tanh": 4,
    "relu": 5,
    "elu1": 6,
    "logsigmoid": 7,
    "relu2": 8,
}
SUMS = {"sum": 0, "abs": 1, "square": 2}
NAN = F(np.nan)


@intrinsic
def _as_float(typing: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@compile
def _exp(x):  # type: ignore[no-untyped-def]
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    n = np.rint(x * LOG2E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = ((((((T7 * r + T6) * r + T5) * r + T4) * r + T3) * r + T2) * r + T1) * r + T0
    return p * _as_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@compile
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return ONE / (_exp(-x) + ONE)


@compile
def _logsigmoid(x):  # type: ignore[no-untyped-def]
    e = _exp(-abs(x))
    s = e / (e + TWO)
    z = s * s
    p = ((((((A15 * z + A13) * z + A11) * z + A9) * z + A7) * z + A5) * z + A3) * z + A1
    return (ZERO if x > ZERO else x) - (p * s) * TWO


@compile
def _normal_cdf(x):  # type: ignore[no-untyped-def]
    a = abs(x) * ROOT_HALF
    t = ONE / (a * ERF_P + ONE)
    p = (((E5 * t + E4) * t + E3) * t + E2) * t + E1
    tail = ((p * t) * _exp(-(a * a))) * HALF
    return tail if x < ZERO else ONE - tail


@compile
def _apply(x, a, n, form, out, o):  # type: ignore[no-untyped-def]
    """One of `ACTIVATIONS` on n numbers; to another place, else the compiler has to take them one by one."""
    if form == 0:
        for i in range(n):
            out[o + i] = _exp(x[a + i])
    elif form == 1:
        for i in range(n):
            out[o + i] = _sigmoid(x[a + i])
    elif form == 2:
        for i in range(n):
            out[o + i] = x[a + i] / (_exp(-x[a + i]) + ONE)
    elif form == 3:
        for i in range(n):
            out[o + i] = x[a + i] * _normal_cdf(x[a + i])
    elif form == 4:
        for i in range(n):
            y = x[a + i]
            out[o + i] = y * _sigmoid((y * y * y * CUBE + y) * GELU)
    elif form == 5:
        for i in range(n):
            out[o + i] = ZERO if x[a + i] < ZERO else x[a + i]
    elif form == 6:
        for i in range(n):
            out[o + i] = x[a + i] + ONE if x[a + i] > ZERO else _exp(x[a + i])
    elif form == 7:
        for i in range(n):
            out[o + i] = _logsigmoid(x[a + i])
    elif form == 8:
        for i in range(n):
            y = ZERO if x[a + i] < ZERO else x[a + i]
            out[o + i] = y * y
    else:
        for i in range(n):
            out[o + i] = NAN


@Threaded
def _unary(x, form, out, nw):  # type: ignore[no-untyped-def]
    size = len(x)
    for worker in prange(nw):
        first = U(worker * size // nw)
        _apply(x, first, U((worker + 1) * size // nw) - first, form, out, first)


@compile
def _halves(part, at, width):  # type: ignore[no-untyped-def]
    """Folds ``part[at : at + width]``, width a power of two, onto its first number."""
    while width > 1:
        width //= 2
        half = U(width)
        for i in range(half):
            part[at + i] = part[at + i] + part[at + half + i]
    return part[at]


@compile
def _half_of(size):  # type: ignore[no-untyped-def]
    """Half of the smallest power of two that is at least `size`; 0 for one number."""
    width = 1
    while width < size:
        width *= 2
    return width // 2


@compile
def _folded(x, a, size, half, form, part, at):  # type: ignore[no-untyped-def]
    """Sum of ``x[a : a + size]`` (form 0), of magnitudes (1) or of squares (2), folded; `half` is `_half_of` size."""
    if half == 0:
        y = x[a]
        return y if form == 0 else abs(y) if form == 1 else y * y
    first, rest = U(half), U(size - half)
    if form == 0:
        for i in range(rest):
            part[at + i] = x[a + i] + x[a + first + i]
        for i in range(rest, first):
            part[at + i] = x[a + i] + ZERO
    elif form == 1:
        for i in range(rest):
            part[at + i] = abs(x[a + i]) + abs(x[a + first + i])
        for i in range(rest, first):
            part[at + i] = abs(x[a + i]) + ZERO
    else:
        for i in range(rest):
            part[at + i] = x[a + i] * x[a + i] + x[a + first + i] * x[a + first + i]
        for i in range(rest, first):
            part[at + i] = x[a + i] * x[a + i] + ZERO
    return _halves(part, at, half)


@Threaded
def _row_sum(x, rows, size, form, part, out, nw):  # type: ignore[no-untyped-def]
    half = _half_of(size)
    for worker in prange(nw):
        at = U(worker * max(half, 1))
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            out[row] = _folded(x, U(row * size), size, half, form, part, at)


@compile
def _norm_row(x, a, size, half, weight, wo, weighted, eps, part, at, out, oo):  # type: ignore[no-untyped-def]
    """RMSNorm of one row; `out` may be `x`."""
    root = np.sqrt(_folded(x, a, size, half, 2, part, at) / F(size) + eps)
    if weighted:
        for i in range(U(size)):
            out[oo + i] = x[a + i] / root * weight[wo + i]
    else:
        for i in range(U(size)):
            out[oo + i] = x[a + i] / root


@Threaded
def _norms(x, rows, size, weight, eps, part, out, nw):  # type: ignore[no-untyped-def]
    half = _half_of(size)
    for worker in prange(nw):
        at = U(worker * max(half, 1))
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            a = U(row * size)
            _norm_row(x, a, size, half, weight, U(0), len(weight) > 0, eps, part, at, out, a)


@compile
def _dot(q, a, k, b, size, half, part, at):  # type: ignore[no-untyped-def]
    """q · k, folded."""
    if half == 0:
        return q[a] * k[b]
    first, rest = U(half), U(size - half)
    for i in range(rest):
        part[at + i] = q[a + i] * k[b + i] + q[a + first + i] * k[b + first + i]
    for i in range(rest, first):
        part[at + i] = q[a + i] * k[b + i] + ZERO
    return _halves(part, at, half)


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
    """q · n columns of a matrix with rows of `keys`, folded over its rows: a vector of columns per operation."""
    row, column = q.ctypes.data + 4 * np.int64(a), turned.ctypes.data + 4 * np.int64(b)
    to = score.ctypes.data + 4 * np.int64(c)
    if _fold_keys(row, column, 4 * np.int64(keys), np.int64(n), np.int64(size), to):
        return
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


@compile
def _update_state(k, ka, v, va, gated, gate, ga, s, so, z, zo, size, n):  # type: ignore[no-untyped-def]
    """S and z take in one token, after their decay where there is a gate."""
    for c in range(U(size)):
        row, key = so + c * n, k[ka + c]
        if gated:
            held = gate[ga + c]
            for i in range(n):
                s[row + i] = s[row + i] * held + key * v[va + i]
            z[zo + c] = z[zo + c] * held + key
        else:
            for i in range(n):
                s[row + i] = s[row + i] + key * v[va + i]
            z[zo + c] = z[zo + c] + key


@Threaded
def _scan(q, k, v, gate, s, z, keep, shape, part, out, norm, nw):  # type: ignore[no-untyped-def]
    b_all, t_all, h_all, groups, size, wide = shape
    share, half = h_all // groups, _half_of(size)
    for worker in prange(nw):
        at = U(worker * (max(half, 1) * max(wide, 1) + APART))
        for task in range(worker * b_all * groups // nw, (worker + 1) * b_all * groups // nw):
            b, g = task // groups, task % groups
            so, zo, n = U(task * size * wide), U(task * size), U(wide)
            for t in range(t_all):
                if len(keep) and not keep[b * t_all + t]:
                    for i in range(U(size) * n):
                        s[so + i] = ZERO
                    for i in range(U(size)):
                        z[zo + i] = ZERO
                ka, va = U(((b * t_all + t) * groups + g) * size), U(((b * t_all + t) * groups + g) * wide)
                for line in range(0, size if t + SOON < t_all else 0, 16):  # rows of one head: nothing foresees them
                    ahead = SOON * groups * size + line
                    prefetch(k, ka + U(ahead))
                    prefetch(gate, ka + U(ahead))
                    prefetch(v, va + U(SOON * groups * wide + line))
                    prefetch(q, U(((b * t_all + t + SOON) * h_all + g * share) * size + line))
                _update_state(k, ka, v, va, len(gate) > 0, gate, ka, s, so, z, zo, size, n)
                for h in range(g * share, (g + 1) * share):
                    row = (b * t_all + t) * h_all + h
                    _dots(q, U(row * size), s, so, wide, wide, size, half, part, at, out, U(row * wide))
                    seen = (task * t_all + t) * share + h - g * share  # a worker's own, unlike the rows of `out`
                    norm[seen] = _dot(q, U(row * size), z, zo, size, half, part, at)


@guarded("exact_unary")
def unary(x: Tensor, form: str) -> Tensor:
    """Twin of `fastsnn_integer.deterministic.unary_naive`."""
    if form not in ACTIVATIONS:
        return NotImplemented
    out = empty(tuple(x.shape), torch.float32)
    _unary(flat(x.contiguous()), ACTIVATIONS[form], flat(out))
    return out


@guarded("exact_row_sum")
def row_sum(x: Tensor, form: str) -> Tensor:
    """Twin of `fastsnn_integer.deterministic.row_sum_naive`."""
    rows, size = x.shape
    if form not in SUMS:
        return NotImplemented
    if not size:
        return torch.zeros(rows)
    out = torch.empty(rows)
    nw = workers()
    part = scratch("row_sum", nw * (1 << (size - 1).bit_length()), F)
    _row_sum.on(nw, flat(x.contiguous()), rows, size, SUMS[form], part, flat(out))
    return out


@guarded("exact_norm")
def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Twin of `fastsnn_integer.deterministic.norm_naive`."""
    rows, size = x.shape
    if not size:
        return torch.zeros(rows, size)
    out = empty((rows, size), torch.float32)
    nw = workers()
    part = scratch("norm", nw * (1 << (size - 1).bit_length()), F)
    _norms.on(nw, flat(x.contiguous()), rows, size, flat(weight.contiguous()), F(eps), part, flat(out))
    return out


@guarded("exact_scan")
def scan(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, s: Tensor, z: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Twin of `fastsnn_integer.deterministic.scan_naive`."""
    (b, t, h, size), (groups, wide) = q.shape, (k.shape[2], v.shape[-1])
    if not size or not wide:
        return NotImplemented
    out, norm = torch.empty(b, t, h, wide), torch.empty(b, groups, t, h // groups)
    s, z = s.contiguous().clone(), z.contiguous().clone()
    nw = workers()
    part = scratch("scan_part", nw * ((1 << (size - 1).bit_length()) * wide + APART), F)
    rows = (flat(x.contiguous()) for x in (q, k, v, gate))
    shape = (b, t, h, groups, size, wide)
    _scan.on(nw, *rows, flat(s), flat(z), flat(keep.contiguous()), shape, part, flat(out), flat(norm))
    return out, norm.transpose(1, 2).reshape(b, t, h), s, z
