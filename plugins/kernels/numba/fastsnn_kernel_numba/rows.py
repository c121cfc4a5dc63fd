"""Twins of `fastsnn_integer.fused_row_ops`: what stands between two products, a row at a time in cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_core.lowering import Spikes
from fastsnn_core.ops.dispatch import took
from fastsnn_integer import deterministic
from fastsnn_integer.fused_row_ops import Counts, Sums
from fastsnn_kernel_numba.event import U
from fastsnn_kernel_numba.exact import APART, ZERO, F, _apply, _half_of, _norm
from fastsnn_kernel_numba.launch import Threaded, compile, flat, scratch, workers
from fastsnn_kernel_numba.linear import BY_OUTPUT, FEW, MANY, break_even, gemm, is_input_major, sums, trusted
from fastsnn_kernel_numba.step import (
    BOUND,
    BURST,
    CENTRE,
    DEAD,
    KIND,
    LEVEL,
    LEVELS,
    MAX,
    MEAN,
    MOST_BURST,
    _round,
    _threshold,
)

KINDS = {"levels": LEVELS, "mean": MEAN, "max": MAX}
FORMS = tuple(deterministic.FORMS)
NONE = np.zeros(0, F)
ACTIVE, ODD = range(2)  # of what is found


@compile
def _numbers(total, at, size, scale, bias, v, out, oo):  # type: ignore[no-untyped-def]
    """float(total) · scale · V + bias of a row."""
    n = U(size)
    for i in range(n):
        out[oo + i] = F(total[at + i]) * scale[i] * v
    if len(bias):
        for i in range(n):
            out[oo + i] = out[oo + i] + bias[i]


@compile
def _fire(y, a, size, half, ints, fracs, centre, part, at, low, wide, to, found):  # type: ignore[no-untyped-def]
    """Counts of the row y, which is used up, to place `to`; V."""
    if len(centre):
        for i in range(U(size)):
            y[a + i] = y[a + i] - centre[i]
    kind, bound = ints[KIND], fracs[BOUND]
    v, limit = _threshold(y, a, size, half, kind, fracs[LEVEL], bound, ints[BURST], part, at)
    _round(y, a, size, v, kind, bound, fracs[DEAD], limit)
    active, odd = np.int32(0), np.int32(0)
    for i in range(U(size)):
        c = y[a + i]
        low[to + i] = np.int8(np.int32(c))
        active += np.int32(c != ZERO)
        odd += np.int32(not abs(c) <= F(127))
    if len(wide):
        for i in range(U(size)):
            wide[to + i] = y[a + i]
    found[ACTIVE] += active
    found[ODD] += odd
    return v


@Threaded
def _residual(x, rows, size, total, scale, bias, va, weight, eps, rule, own, room, low, wide, v, found, nw):  # type: ignore[no-untyped-def]
    half, (ints, fracs, centre) = _half_of(size), rule
    for worker in prange(nw):
        ya = U(worker * room)
        pa, n = ya + U(size), U(size)
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            a = U(row * size)
            if len(total):
                _numbers(total, a, size, scale, bias, va[row], own, ya)
                for i in range(n):
                    x[a + i] = x[a + i] + own[ya + i]
            if len(weight):
                _norm(x, a, size, half, weight, U(0), True, eps, own, pa, own, ya)
            else:
                for i in range(n):
                    own[ya + i] = x[a + i]
            v[row] = _fire(own, ya, size, half, ints, fracs, centre, own, pa, low, wide, a, found[worker])


@Threaded
def _hidden(up, su, bu, gate, sg, bg, va, rows, size, form, rule, own, room, low, wide, v, found, nw):  # type: ignore[no-untyped-def]
    half, (ints, fracs, centre) = _half_of(size), rule
    for worker in prange(nw):
        ya, n = U(worker * room), U(size)
        za = ya + n
        pa = za + n
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            a = U(row * size)
            if len(gate):
                _numbers(gate, a, size, sg, bg, va[row], own, za)
            else:
                _numbers(up, a, size, su, bu, va[row], own, za)
            _apply(own, za, n, form, own, ya)
            if len(gate):
                _numbers(up, a, size, su, bu, va[row], own, za)
                for i in range(n):
                    own[ya + i] = own[ya + i] * own[za + i]
            v[row] = _fire(own, ya, size, half, ints, fracs, centre, own, pa, low, wide, a, found[worker])


@compile
def _place(total, row, wide, scale, bias, v, weight, eps, cos, sin, size, own, ya, pa, out):  # type: ignore[no-untyped-def]
    """The heads of one row: numbers, then norm and rotation where there are any."""
    a, n, half = U(row * wide), U(size), U(size // 2)
    _numbers(total, a, wide, scale, bias, v, own, ya)
    if len(weight):
        for h in range(U(wide // size)):
            _norm(own, ya + h * n, size, _half_of(size), weight, U(0), True, eps, own, pa, own, ya + h * n)
    if len(cos):
        for h in range(U(wide // size)):
            x, o, p = ya + h * n, a + h * n, U(row) * half
            for i in range(half):
                out[o + i] = own[x + i] * cos[p + i] - own[x + half + i] * sin[p + i]
            for i in range(half):
                out[o + half + i] = own[x + half + i] * cos[p + i] + own[x + i] * sin[p + i]
    else:
        for i in range(U(wide)):
            out[a + i] = own[ya + i]


@Threaded
def _heads(q, k, v, va, rows, shape, eps, q_norm, k_norm, cos, sin, none, own, room, q_out, k_out, v_out, nw):  # type: ignore[no-untyped-def]
    (qt, qs, qb), (kt, ks, kb), (vt, vs, vb), (size, wide, narrow) = q, k, v, shape
    for worker in prange(nw):
        ya = U(worker * room)
        pa = ya + U(wide)
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            _place(qt, row, wide, qs, qb, va[row], q_norm, eps, cos, sin, size, own, ya, pa, q_out)
            _place(kt, row, narrow, ks, kb, va[row], k_norm, eps, cos, sin, size, own, ya, pa, k_out)
            _place(vt, row, narrow, vs, vb, va[row], none, eps, none, none, size, own, ya, pa, v_out)


def rule_of(rule: Spikes) -> Any:
    """A rule as the kernels take it; None where they do not."""
    if rule.burst >= MOST_BURST:
        return None
    ints = np.zeros(3, np.int64)
    ints[KIND], ints[CENTRE], ints[BURST] = KINDS[rule.kind], 0, rule.burst
    fracs = np.array([rule.level, rule.bound, rule.dead_zone], F)
    return ints, fracs, optional(rule.centre)


def optional(t: Tensor | None) -> Any:
    """The numbers of a vector in float32; none for None."""
    return NONE if t is None else flat(t.float().contiguous())


def parts(s: Sums) -> Any:
    """Total, scale and bias of a projection."""
    return flat(s.total), optional(s.matrix.scale), optional(s.matrix.bias)


def apart(s: Sums | None) -> bool:
    """Is this one for the kernels? Totals of 64 bits are not."""
    return s is None or (s.total.dtype == torch.int32 and s.total.is_contiguous())


NO_SUMS = (np.zeros(0, np.int32), NONE, NONE)


def residual(x: Tensor, add: Sums | Tensor | None, norm: Tensor | None, eps: float, rule: Spikes) -> Any:
    """Twin of `fastsnn_integer.fused_row_ops.residual_naive`."""
    (rows, size), made = x.shape, rule_of(rule)
    if made is None or not rows or not size or not x.is_contiguous() or x.dtype != torch.float32:
        return NotImplemented
    if isinstance(add, Tensor) or not apart(add):
        x += add if isinstance(add, Tensor) else add.numbers()
        add = None
    given, va = (NO_SUMS, NONE) if add is None else (parts(add), flat(add.v))
    weight, room = optional(norm), -(-(size + fold(size)) // 16) * 16 + APART
    own = scratch("rows", workers() * room, F)

    def run(given: Any, low: Any, wide: Any, v: Any, found: Any) -> None:
        _residual(flat(x), rows, size, *given, va, weight, F(eps), made, own, room, low, wide, v, found)

    return counted(run, rows, size, given, NO_SUMS)


def hidden(up: Sums, gate: Sums | None, activation: str, rule: Spikes) -> Any:
    """Twin of `fastsnn_integer.fused_row_ops.hidden_naive`."""
    (rows, size), made = up.total.shape, rule_of(rule)
    if made is None or not rows or not size or not apart(up) or not apart(gate):
        return NotImplemented
    both, form = (*parts(up), *(NO_SUMS if gate is None else parts(gate))), FORMS.index(activation)
    room = -(-(2 * size + fold(size)) // 16) * 16 + APART
    own = scratch("rows", workers() * room, F)

    def run(given: Any, low: Any, wide: Any, v: Any, found: Any) -> None:
        _hidden(*given, flat(up.v), rows, size, form, made, own, room, low, wide, v, found)

    return counted(run, rows, size, both, both)


def counted(run: Any, rows: int, size: int, given: Any, again: Any) -> Counts:
    """Counts of 8 bits; all over in float32 (with the inputs `again`) where one does not fit them."""
    low, v = torch.empty(rows, size, dtype=torch.int8), torch.empty(rows, 1)
    found = np.zeros((workers(), 16), np.int64)
    run(given, flat(low), NONE, flat(v), found)
    active, odd = (int(found[:, i].sum()) for i in (ACTIVE, ODD))
    if not odd:
        return Counts(low, v, active)
    wide = torch.empty(rows, size)
    run(again, flat(low), flat(wide), flat(v), found)
    return Counts(wide, v, active)


def fold(size: int) -> int:
    """Room to fold `size` numbers, and for the largest of them."""
    return max(1 << (size - 1).bit_length(), 2 * MOST_BURST)


def heads(q: Sums, k: Sums, v: Sums, width: int, norms: tuple[Tensor, Tensor] | None, eps: float, angles: Any) -> Any:
    """Twin of `fastsnn_integer.fused_row_ops.heads_naive`."""
    (rows, wide), narrow = q.total.shape, k.total.shape[1]
    if not rows or not all(apart(s) for s in (q, k, v)):
        return NotImplemented
    outs = [torch.empty(rows, s.total.shape[1] // width, width) for s in (q, k, v)]
    room = -(-(wide + fold(width)) // 16) * 16 + APART
    own = scratch("rows", workers() * room, F)
    by = [optional(n) for n in norms or (None, None)]
    turn = [optional(a) for a in angles or (None, None)]
    given, shape = (parts(s) for s in (q, k, v)), (width, wide, narrow)
    _heads(*given, flat(q.v), rows, shape, F(eps), *by, *turn, NONE, own, room, *(flat(o) for o in outs))
    return tuple(outs)


def project(counts: Counts, weight: Tensor) -> Tensor:
    """Twin of `fastsnn_integer.fused_row_ops.project_naive`: the dense product at once, unless few inputs spiked."""
    rows, inputs = counts.counts.shape
    if weight.dtype != torch.int8 or not 1 < inputs < 1 << 17 or not trusted() or not rows:
        return NotImplemented
    why = BY_OUTPUT
    if is_input_major(weight):
        limit = break_even(rows, weight)
        if rows < FEW or counts.active * FEW < limit * rows * inputs:
            return sums(counts.counts.to(torch.int32), weight).to(torch.int32)
        why = MANY.format(limit)
    took("count_linear", "numba: dense", why)
    return gemm(counts.counts, weight)
