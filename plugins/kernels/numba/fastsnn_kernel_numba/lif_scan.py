"""`lif_scan`, its backward and its membrane in Numba: one pass over memory, vectorised across channels.

Each task owns one stream b and a block of channels, and walks over T with v in cache; rows of x are read whole, so that
the hardware prefetcher sees one long stream. The backward recomputes u from the checkpoints into an L2-sized block
instead of reading it back. No fast-math: every operation rounds as in the naive twin, so results are equal bit for bit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_core.ops.surrogate_gradient import thresholds
from fastsnn_kernel_numba.buffer_pool import empty
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat, prefetch, workers
from fastsnn_leaky.scan import CHECKPOINT, LifRule, SurrogateForm
from fastsnn_modules.operands import guarded

U = np.uint64  # unsigned indices: Numba adds no wrap-around test to them, so LLVM vectorises the loops
ROW, L2_BLOCK = 1 << 14, 1 << 19  # bytes of a row of x that one task reads, and of u that it keeps
AHEAD = 2  # rows asked for in advance
TYPES = (torch.float32, torch.float64)
IDENTITY, WINDOW, ATAN, SLOPE = range(4)
NO_GRADIENT = SurrogateForm()


class LifConstants(NamedTuple):
    """Every number of a neuron that a kernel needs, in the type of x, and how it fires."""

    beta: Any
    theta: Any
    lo: Any
    hi: Any
    first: Any  # lowest and highest threshold of the count, for the surrogate
    last: Any
    alpha: Any
    steep: Any  # π/2 · alpha
    half: Any  # alpha / 2
    zero: Any
    one: Any
    heaviside: bool
    hard: bool  # a spike sets v to 0; else it takes what it was worth
    attached: bool  # the gradient goes through the reset, too


def rounded_constants(
    dtype: torch.dtype, theta: Tensor, rule: LifRule, surrogate: SurrogateForm = NO_GRADIENT
) -> LifConstants:
    """Computed in double as Python does, and then rounded once to the type of x."""
    first, last = thresholds(rule.lo, rule.hi, rule.heaviside)
    alpha = surrogate.alpha
    numbers = (rule.beta, float(theta), rule.lo, rule.hi, first, last, alpha, math.pi / 2 * alpha, alpha / 2, 0.0, 1.0)
    kind = np.float32 if dtype == torch.float32 else np.float64
    how = rule.heaviside, rule.hard, surrogate.attached
    return LifConstants(*(kind(number) for number in numbers), *map(bool, how))


@compile
def _fire(h, k):  # type: ignore[no-untyped-def]
    """Count and next v where u = h."""
    c = k.lo if h < k.lo else h
    c = np.rint(k.hi if c > k.hi else c)
    if k.heaviside:
        c = k.one if h >= k.one else (k.zero if h < k.one else h)  # NaN stays NaN
    v = h - c
    if k.hard:
        v = k.zero if c != k.zero else h
    return c, v


@compile
def _count_row(x, c, o, v, ov, n, k):  # type: ignore[no-untyped-def]
    """One token of n channels, from x and v: c and the new v."""
    beta, theta, unit = k.beta, k.theta, k.theta == 1  # by 1: leave out a division, half the work
    for d in range(n):
        h = beta * v[ov + d] + (x[o + d] if unit else x[o + d] / theta)
        c[o + d], v[ov + d] = _fire(h, k)


@compile
def _u_row(x, o, u, ou, v, ov, n, k):  # type: ignore[no-untyped-def]
    """One token of n channels, from x and v: u and the new v."""
    beta, theta, unit = k.beta, k.theta, k.theta == 1  # by 1: leave out a division, half the work
    for d in range(n):
        h = beta * v[ov + d] + (x[o + d] if unit else x[o + d] / theta)
        u[ou + d] = h
        v[ov + d] = _fire(h, k)[1]


@compile
def _back(g, s, h, through, k):  # type: ignore[no-untyped-def]
    """Gradient of u = h from those of the count (times its derivative s) and of the next v."""
    if k.hard:
        through = k.zero if _fire(h, k)[0] != k.zero else through
    if k.attached:
        g = g - through
    return g * s + through


@compile
def _grad_row(g, og, s, os, u, ou, grad_x, o, carry, oc, n, k):  # type: ignore[no-untyped-def]
    """One token of n channels backwards, with derivatives given in s: grad_x, and what goes on to the token before."""
    beta, theta, unit = k.beta, k.theta, k.theta == 1
    for d in range(n):
        grad_u = _back(g[og + d], s[os + d], u[ou + d], carry[oc + d], k)
        grad_x[o + d] = grad_u if unit else grad_u / theta
        carry[oc + d] = beta * grad_u


@compile
def _grad_row_closed(g, og, form, u, ou, grad_x, o, carry, oc, n, k):  # type: ignore[no-untyped-def]
    """The same with a closed form, in the order of operations of `surrogate_gradient.derivative`."""
    beta, theta, unit = k.beta, k.theta, k.theta == 1
    first, last, alpha, steep, half, zero, one = k.first, k.last, k.alpha, k.steep, k.half, k.zero, k.one
    for d in range(n):
        h = u[ou + d]
        below, above = first - h, h - last
        far = (zero if below < zero else below) + (zero if above < zero else above)
        z = steep * far
        s = (one if far <= alpha else zero) if form == WINDOW else one / (one + z * z) * half
        grad_u = _back(g[og + d], s, h, carry[oc + d], k)
        grad_x[o + d] = grad_u if unit else grad_u / theta
        carry[oc + d] = beta * grad_u


@compile
def _prefetch_row(a, o, n):  # type: ignore[no-untyped-def]
    """Prefetch a row: hardware prefetchers stop at the end of a page."""
    for d in range(U(0), n, U(64 // a.itemsize)):
        prefetch(a, o + d)


@compile
def _fill(a, o, n, value):  # type: ignore[no-untyped-def]
    for d in range(n):
        a[o + d] = value


@compile
def _copy(a, oa, b, ob, n):  # type: ignore[no-untyped-def]
    for d in range(n):
        b[ob + d] = a[oa + d]


@Threaded
def _forward(x, v0, keep, k, shape, width, c, v, marks, nw):  # type: ignore[no-untyped-def]
    batch, steps, wide, every = shape
    blocks, pieces = (wide + width - 1) // width, (steps + every - 1) // every
    tasks = batch * blocks
    for w in prange(nw):
        for task in range(w * tasks // nw, (w + 1) * tasks // nw):
            b, d0 = task // blocks, task % blocks * width
            n, ov = U(min(width, wide - d0)), U(b * wide + d0)
            _copy(v0, ov, v, ov, n)
            for t in range(steps):
                if t % every == 0:
                    _copy(v, ov, marks, U((b * pieces + t // every) * wide + d0), n)
                if len(keep) and not keep[b * steps + t]:
                    _fill(v, ov, n, k.zero)
                o = U((b * steps + t) * wide + d0)
                if n < wide:
                    _prefetch_row(x, o + U(AHEAD * wide), n)
                    _prefetch_row(c, o + U(AHEAD * wide), n)
                _count_row(x, c, o, v, ov, n, k)


@Threaded
def _membrane(x, v, keep, k, shape, width, u, nw):  # type: ignore[no-untyped-def]
    batch, steps, wide, _ = shape
    blocks = (wide + width - 1) // width
    tasks = batch * blocks
    for w in prange(nw):
        for task in range(w * tasks // nw, (w + 1) * tasks // nw):
            b, d0 = task // blocks, task % blocks * width
            n, ov = U(min(width, wide - d0)), U(b * wide + d0)
            for t in range(steps):
                if len(keep) and not keep[b * steps + t]:
                    _fill(v, ov, n, k.zero)
                o = U((b * steps + t) * wide + d0)
                _u_row(x, o, u, o, v, ov, n, k)


@Threaded
def _backward_kernel(gradient, carry, x, marks, keep, slope, k, form, shape, width, grad_x, us, vs, nw):  # type: ignore[no-untyped-def]
    """`gradient` is what comes in, as memory, and its strides of B and T."""
    g, g_batch, g_step = gradient
    batch, steps, wide, every = shape
    blocks, pieces = (wide + width - 1) // width, (steps + every - 1) // every
    tasks, closed = batch * blocks, form in (WINDOW, ATAN)
    for w in prange(nw):
        room, ov, os = U(w * every * width), U(w * 2 * width), U((w * 2 + 1) * width)  # this worker's u, v and slopes
        _fill(vs, os, U(width), k.one)
        for task in range(w * tasks // nw, (w + 1) * tasks // nw):
            b, d0 = task // blocks, task % blocks * width
            n, oc = U(min(width, wide - d0)), U(b * wide + d0)
            for piece in range(pieces - 1, -1, -1):
                t0, t1 = piece * every, min(steps, (piece + 1) * every)
                if closed or k.hard:
                    _copy(marks, U((b * pieces + piece) * wide + d0), vs, ov, n)
                    for t in range(t0, t1):
                        if len(keep) and not keep[b * steps + t]:
                            _fill(vs, ov, n, k.zero)
                        o = U((b * steps + t) * wide + d0)
                        _u_row(x, o, us, room + U((t - t0) * width), vs, ov, n, k)
                for t in range(t1 - 1, t0 - 1, -1):
                    o, ou = U((b * steps + t) * wide + d0), room + U((t - t0) * width)
                    og = U(b * g_batch + t * g_step + d0)
                    _prefetch_row(grad_x, o - U(AHEAD * wide), n)
                    if closed:
                        _grad_row_closed(g, og, form, us, ou, grad_x, o, carry, oc, n, k)
                    elif form == SLOPE:
                        _grad_row(g, og, slope, o, us, ou, grad_x, o, carry, oc, n, k)
                    else:
                        _grad_row(g, og, vs, os, us, ou, grad_x, o, carry, oc, n, k)
                    if len(keep) and not keep[b * steps + t]:
                        _fill(carry, oc, n, k.zero)


def _width(shape: torch.Size, itemsize: int, most: int, nw: int) -> int:
    """Channels per task: whole rows up to `most` bytes, fewer where there are fewer streams than workers."""
    batch, _, wide = shape
    share = -(-wide // -(-nw // batch))
    return max(1, min(-(-share // 16) * 16, most // itemsize, wide))


@guarded("lif_scan")
def forward(x: Tensor, v: Tensor, keep: Tensor, theta: Tensor, rule: LifRule) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `fastsnn_leaky.scan.forward_naive`."""
    if x.dtype not in TYPES:
        return NotImplemented
    batch, steps, wide = x.shape
    counts, v_last = empty(x.shape, x.dtype), torch.empty_like(v)
    marks = empty((batch, -(-steps // CHECKPOINT), wide), x.dtype)
    if v.numel():
        k = rounded_constants(x.dtype, theta, rule)
        width = _width(x.shape, x.itemsize, ROW, workers())
        outs = flat(counts), flat(v_last), flat(marks)
        _forward(flat(x), flat(v), flat(keep), k, (*x.shape, CHECKPOINT), width, *outs)
    return counts, v_last, marks


@guarded("lif_membrane")
def membrane(
    x: Tensor, marks: Tensor, keep: Tensor, theta: Tensor, rule: LifRule,
) -> Tensor:  # fmt: skip
    """Twin of `fastsnn_leaky.scan.membrane`."""
    if x.dtype not in TYPES:
        return NotImplemented
    u = empty(x.shape, x.dtype)
    if x.numel():
        k = rounded_constants(x.dtype, theta, rule)
        v = marks[:, 0].clone(memory_format=torch.contiguous_format)
        width = _width(x.shape, x.itemsize, ROW, workers())
        _membrane(flat(x), flat(v), flat(keep), k, (*x.shape, CHECKPOINT), width, flat(u))
    return u


@guarded("lif_scan_backward")
def backward(
    grad_c: Tensor, grad_v: Tensor, x: Tensor, marks: Tensor, keep: Tensor, slope: Tensor, theta: Tensor,
    rule: LifRule, surrogate: SurrogateForm,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Twin of `fastsnn_leaky.scan.backward_naive`; an expanded gradient is read as one row."""
    if x.dtype not in TYPES:
        return NotImplemented
    grad_x, carry = empty(x.shape, x.dtype), grad_v.clone(memory_format=torch.contiguous_format)
    if x.numel():
        k = rounded_constants(x.dtype, theta, rule, surrogate)
        nw = workers()
        width = _width(x.shape, x.itemsize, L2_BLOCK // CHECKPOINT, nw)
        us = torch.empty(nw * CHECKPOINT * width, dtype=x.dtype)
        vs = torch.empty(nw * 2 * width, dtype=x.dtype)
        form = SLOPE if slope.numel() else surrogate.form
        given = _strided_rows(grad_c), flat(carry), flat(x), flat(marks), flat(keep), flat(slope)
        _backward_kernel.on(nw, *given, k, form, (*x.shape, CHECKPOINT), width, flat(grad_x), flat(us), flat(vs))
    return grad_x, carry


def _strided_rows(g: Tensor) -> tuple[Any, int, int]:
    """``[B,T,D]`` as memory plus the strides of B and T; rows are made contiguous, but nothing expanded is copied."""
    for dim in range(2):
        if g.stride(dim) == 0 or g.shape[dim] == 1:
            g = g.narrow(dim, 0, 1)
    batch, step = (0 if g.shape[dim] == 1 else 1 for dim in range(2))
    g = g.contiguous()
    return flat(g), batch * g.stride(0), step * g.stride(1)
