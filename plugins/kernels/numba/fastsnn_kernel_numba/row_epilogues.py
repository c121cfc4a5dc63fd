"""Twins of `fastsnn_integer.fused_row_ops`: everything between two INT8 products, each row in cache from end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_core.lowering import NormForm, SiteForm
from fastsnn_core.ops.dispatch import record_path
from fastsnn_events import byte_product
from fastsnn_integer.fused_row_ops import CountRows, Sums
from fastsnn_kernel_numba.deterministic import ACTIVATIONS, APART, ZERO, F, _apply, _half_of, _norm_row
from fastsnn_kernel_numba.fused_decoder_stages import MOST_BURST, _round_counts, _threshold
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.integer_linear import (
    BY_OUTPUT,
    FEW,
    MANY,
    break_even,
    by_torch,
    gemm,
    is_input_major,
    sums,
)
from fastsnn_kernel_numba.layout import SITE, STATISTICS, pack
from fastsnn_kernel_numba.narrow_counts import narrow_rows
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat, scratch, workers
from fastsnn_kernel_numba.tile_gemm import tile_gemm
from fastsnn_modules.operands import guarded

NONE = np.zeros(0, F)
NO_SUMS = (np.zeros(0, np.int32), NONE, NONE)
ACTIVE, TOO_LARGE = range(2)  # what is found of a worker's rows: counts that are not 0, and that 8 bits do not hold


@compile
def _dequantise_row(product, at, size, v, out, oo):  # type: ignore[no-untyped-def]
    """float(total) · scale · V + bias of a row; `product` is (total, scale, bias)."""
    n, (total, scale, bias) = U(size), product
    for i in range(n):
        out[oo + i] = F(total[at + i]) * scale[i] * v
    if len(bias):
        for i in range(n):
            out[oo + i] = out[oo + i] + bias[i]


@compile
def _row_to_counts(y, a, size, half, site, part, at, out, to, found):  # type: ignore[no-untyped-def]
    """Counts of the row y, which is used up, to place `to` of `out` = (int8, float32 or empty); V.

    `site` is (records [1] of `layout.SITE`, centre or empty).
    """
    (rules, centre), (low, wide) = site, out
    rule = rules[0]
    if len(centre):
        for i in range(U(size)):
            y[a + i] = y[a + i] - centre[i]
    v, limit = _threshold(y, a, size, half, rule, part, at)
    _round_counts(y, a, size, v, rule, limit)
    active, large = np.int32(0), np.int32(0)
    for i in range(U(size)):
        c = y[a + i]
        low[to + i] = np.int8(np.int32(c))
        active += np.int32(c != ZERO)
        large += np.int32(not abs(c) <= F(127))
    if len(wide):
        for i in range(U(size)):
            wide[to + i] = y[a + i]
    found[ACTIVE] += active
    found[TOO_LARGE] += large
    return v


@Threaded
def _residual(x, rows, size, add, va, norm, site, own, room, out, v, found, nw):  # type: ignore[no-untyped-def]
    """`add` is (total, scale, bias), `norm` (weight or empty, eps), `out` the counts in 8 bits and in float32."""
    half, (weight, eps), (total, scale, bias), (rules, centre), (low, wide) = _half_of(size), norm, add, site, out
    for worker in prange(nw):
        ya = U(worker * room)
        pa, n = ya + U(size), U(size)
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            a = U(row * size)
            if len(total):
                _dequantise_row((total, scale, bias), a, size, va[row], own, ya)
                for i in range(n):
                    x[a + i] = x[a + i] + own[ya + i]
            if len(weight):
                _norm_row(x, a, size, half, weight, U(0), True, eps, own, pa, own, ya)
            else:
                for i in range(n):
                    own[ya + i] = x[a + i]
            v[row] = _row_to_counts(own, ya, size, half, (rules, centre), own, pa, (low, wide), a, found[worker])


@Threaded
def _hidden(up, gate, activation, va, rows, size, site, own, room, out, v, found, nw):  # type: ignore[no-untyped-def]
    """`up` and `gate` are (total, scale, bias), gate's total empty where there is none.

    `activation` is (its code, thresholds of the gate's outputs or empty, whether up goes through ReLU, too).
    """
    form, least, both = activation
    half, (rules, centre), (low, wide) = _half_of(size), site, out
    (up_total, up_scale, up_bias), (total, scale, bias) = up, gate
    for worker in prange(nw):
        ya, n = U(worker * room), U(size)
        za = ya + n
        pa = za + n
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            a = U(row * size)
            if len(total):
                _dequantise_row((total, scale, bias), a, size, va[row], own, za)
            else:
                _dequantise_row((up_total, up_scale, up_bias), a, size, va[row], own, za)
            _apply(own, za, n, form, own, ya)
            for i in range(U(len(least))):
                if abs(own[ya + i]) < least[i]:
                    own[ya + i] = ZERO
            if len(total):
                _dequantise_row((up_total, up_scale, up_bias), a, size, va[row], own, za)
                for i in range(n if both else U(0)):
                    own[za + i] = ZERO if own[za + i] < ZERO else own[za + i]
                for i in range(n):
                    own[ya + i] = own[ya + i] * own[za + i]
            v[row] = _row_to_counts(own, ya, size, half, (rules, centre), own, pa, (low, wide), a, found[worker])


@compile
def _head_row(product, row, wide, size, v, norm, angles, own, ya, out):  # type: ignore[no-untyped-def]
    """The heads of one row: numbers, then norm and rotation where there are any."""
    a, n, half, (weight, eps), (cos, sin) = U(row * wide), U(size), U(size // 2), norm, angles
    pa = ya + U(wide)
    _dequantise_row(product, a, wide, v, own, ya)
    if len(weight):
        for h in range(U(wide // size)):
            _norm_row(own, ya + h * n, size, _half_of(size), weight, U(0), True, eps, own, pa, own, ya + h * n)
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
def _heads_kernel(q, k, v, va, rows, shape, norms, angles, none, own, room, outs, nw):  # type: ignore[no-untyped-def]
    """q, k and v are (total, scale, bias); norms of q and k (weight or empty, eps); `none` is an empty vector."""
    (size, wide, narrow), ((q_norm, q_eps), (k_norm, k_eps)), (cos, sin) = shape, norms, angles
    (q_total, q_scale, q_bias), (k_total, k_scale, k_bias), (v_total, v_scale, v_bias) = q, k, v
    q_out, k_out, v_out = outs
    for worker in prange(nw):
        at = U(worker * room)
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            threshold, turn, still = va[row], (cos, sin), (none, none)
            queries, keys, values = (q_total, q_scale, q_bias), (k_total, k_scale, k_bias), (v_total, v_scale, v_bias)
            _head_row(queries, row, wide, size, threshold, (q_norm, q_eps), turn, own, at, q_out)
            _head_row(keys, row, narrow, size, threshold, (k_norm, k_eps), turn, own, at, k_out)
            _head_row(values, row, narrow, size, threshold, (none, q_eps), still, own, at, v_out)


def packed_site(site: SiteForm) -> Any:
    """A site as the kernels take it: (records, centre); None where they do not take its rule."""
    rule = site.rule
    if rule.burst >= MOST_BURST or rule.statistic not in STATISTICS:
        return None
    row = {"statistic": STATISTICS[rule.statistic], "centre": 0, "burst": rule.burst, "gain": rule.gain,
           "divisor": rule.divisor, "v_min": rule.v_min, "v_max": rule.v_max, "bound": rule.bound,
           "dead_zone": rule.dead_zone}  # fmt: skip
    return pack(SITE, [row]), optional_vector(site.centre)


def optional_vector(t: Tensor | None) -> Any:
    """The numbers of a vector in float32; none for None."""
    return NONE if t is None else flat(t.float().contiguous())


def norm_of(norm: NormForm | None) -> Any:
    """(weight, eps) of a norm; an empty weight for none."""
    return (NONE, F(0)) if norm is None else (optional_vector(norm.weight), F(norm.eps))


def sums_parts(s: Sums) -> Any:
    """Total, scale and bias of a projection."""
    return flat(s.total), optional_vector(s.matrix.scale), optional_vector(s.matrix.bias)


def takes(s: Sums | None) -> bool:
    """Is this one for the kernels? Totals of 64 bits are not."""
    return s is None or (s.total.dtype == torch.int32 and s.total.is_contiguous())


def one_threshold(first: Sums, *more: Sums) -> bool:
    """Were all these projections made from the same counts? The kernels read one threshold V per row for all."""
    return all(s.v is first.v or torch.equal(s.v, first.v) for s in more)


@guarded("rows_residual")
def residual(x: Tensor, add: Sums | Tensor | None, norm: NormForm | None, site: SiteForm) -> Any:
    """Twin of `fastsnn_integer.fused_row_ops.residual_naive`."""
    (rows, size), made = x.shape, packed_site(site)
    if made is None or not rows or not size or not x.is_contiguous() or x.dtype != torch.float32:
        return NotImplemented
    if isinstance(add, Tensor) or not takes(add):
        x += add if isinstance(add, Tensor) else add.dequantised()  # type: ignore[union-attr]
        add = None
    given, va = (NO_SUMS, NONE) if add is None else (sums_parts(add), flat(add.v))
    by, room = norm_of(norm), -(-(size + fold_room(size)) // 16) * 16 + APART
    nw = workers()
    own = scratch("rows", nw * room, F)

    def run(given: Any, out: Any, v: Any, found: Any) -> None:
        _residual.on(nw, flat(x), rows, size, given, va, by, made, own, room, out, v, found)

    return as_counts(run, rows, size, given, NO_SUMS, nw)


@guarded("rows_hidden")
def hidden(
    up: Sums, gate: Sums | None, activation: str, site: SiteForm, gate_threshold: Tensor | None = None,
    up_relu: bool = False,
) -> Any:  # fmt: skip
    """Twin of `fastsnn_integer.fused_row_ops.hidden_naive`."""
    (rows, size), made = up.total.shape, packed_site(site)
    if made is None or not rows or not size or not takes(up) or not takes(gate) or activation not in ACTIVATIONS:
        return NotImplemented
    if gate is not None and not one_threshold(up, gate):
        return NotImplemented
    both = sums_parts(up), NO_SUMS if gate is None else sums_parts(gate)
    room, form = -(-(2 * size + fold_room(size)) // 16) * 16 + APART, ACTIVATIONS[activation]
    nw = workers()
    own, how = scratch("rows", nw * room, F), (form, optional_vector(gate_threshold), int(up_relu))

    def run(given: Any, out: Any, v: Any, found: Any) -> None:
        _hidden.on(nw, *given, how, flat(up.v), rows, size, made, own, room, out, v, found)

    return as_counts(run, rows, size, both, both, nw)


def as_counts(run: Any, rows: int, size: int, given: Any, again: Any, nw: int) -> CountRows:
    """Counts of 8 bits; all over (with the inputs `again`) where one does not fit them: in 16, or in float32."""
    low, v = torch.empty(rows, size, dtype=torch.int8), torch.empty(rows, 1)
    found = np.zeros((nw, 16), np.int64)
    run(given, (flat(low), NONE), flat(v), found)
    active, large = (int(found[:, i].sum()) for i in (ACTIVE, TOO_LARGE))
    if not large:
        return CountRows(low, v, active)
    wide = torch.empty(rows, size)
    run(again, (flat(low), flat(wide)), flat(v), found)
    return CountRows(narrow_rows(wide), v, active)


def fold_room(size: int) -> int:
    """Room to fold `size` numbers, and for the largest of them."""
    return max(1 << (size - 1).bit_length(), 2 * MOST_BURST)


@guarded("rows_heads")
def heads(
    q: Sums, k: Sums, v: Sums, width: int, norms: tuple[NormForm | None, NormForm | None], angles: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `fastsnn_integer.fused_row_ops.heads_naive`."""
    (rows, wide), narrow = q.total.shape, k.total.shape[1]
    if not rows or not all(takes(s) for s in (q, k, v)):
        return NotImplemented
    if not one_threshold(q, k, v):
        return NotImplemented
    outs = [torch.empty(rows, s.total.shape[1] // width, width) for s in (q, k, v)]
    room = -(-(wide + fold_room(width)) // 16) * 16 + APART
    nw = workers()
    own = scratch("rows", nw * room, F)
    by, turn = tuple(norm_of(n) for n in norms), tuple(optional_vector(a) for a in angles or (None, None))
    given, shape = (sums_parts(s) for s in (q, k, v)), (width, wide, narrow)
    _heads_kernel.on(nw, *given, flat(q.v), rows, shape, by, turn, NONE, own, room, tuple(flat(o) for o in outs))
    return outs[0], outs[1], outs[2]


@guarded("rows_project")
def project(counts: CountRows, weight: Tensor) -> Tensor:
    """Twin of `fastsnn_integer.fused_row_ops.project_rows_naive`: the dense product, unless few inputs spiked."""
    rows, inputs = counts.counts.shape
    if weight.dtype != torch.int8 or not 1 < inputs < 1 << 17 or not rows:
        return NotImplemented
    why, input_major, low = BY_OUTPUT, is_input_major(weight), counts.counts.dtype == torch.int8
    if not (low and byte_product.trusted()) and not (input_major and counts.narrow):
        return NotImplemented
    if input_major and low:
        limit = break_even(rows, weight)
        if counts.active * FEW < limit * max(rows, FEW) * inputs:
            return sums(counts.counts.to(torch.int32), weight).to(torch.int32)
        why = MANY.format(limit)
    if low and byte_product.trusted():
        out = gemm(counts.counts, weight)
    else:
        out = tile_gemm(counts.counts.float(), weight, by_torch(rows, inputs))
    if out is None:
        return NotImplemented
    record_path("count_linear", "numba: dense", why)
    return out
