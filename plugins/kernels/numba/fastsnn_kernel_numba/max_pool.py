"""`max_pool` and its backward in Numba: windows of a row at once, every image read and written one time."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_kernel_numba.buffer_pool import empty
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat
from fastsnn_modules.operands import guarded

U = np.uint64
PAIR = U(2)
BOTH_TYPES = (torch.float32, torch.float64)


@compile
def _pool_odd(a, b, c, e, y, place, to):  # type: ignore[no-untyped-def]
    """One window where NaN is larger than every number, and the last of several counts."""
    k = np.uint8(0)
    if b > a or b != b:
        a, k = b, np.uint8(1)
    if c > a or c != c:
        a, k = c, np.uint8(2)
    if e > a or e != e:
        a, k = e, np.uint8(3)
    y[to], place[to] = a, k


@compile
def _pool_pair(x, first, second, y, place, to, n):  # type: ignore[no-untyped-def]
    """n windows of 2 x 2 of two rows, what most pools are: no branch hangs on the numbers, but on NaN."""
    one, two = np.uint8(1), np.uint8(2)
    for d in range(n):
        a, b = x[first + PAIR * d], x[first + PAIR * d + U(1)]
        c, e = x[second + PAIR * d], x[second + PAIR * d + U(1)]
        right, later = np.uint8(b > a), np.uint8(e > c)
        upper = b if b > a else a
        lower = e if e > c else c
        below = np.uint8(lower > upper)
        y[to + d] = lower if lower > upper else upper
        place[to + d] = below * (two + later) + (one - below) * right
        total = a + b + c + e
        if total != total:  # NaN, or infinities of both signs
            _pool_odd(a, b, c, e, y, place, to + d)


@compile
def _pool_place(x, at, w, y, place, to, n, k):  # type: ignore[no-untyped-def]
    """Place k of n windows of width w."""
    for d in range(n):
        b, a = x[at + w * d], y[to + d]
        above = (b > a) | (b != b)
        y[to + d] = b if above else a
        place[to + d] = k if above else place[to + d]


@Threaded
def _pool(x, shape, window, y, place, nw):  # type: ignore[no-untyped-def]
    planes, height, width = shape
    h, w = window
    high, wide = height // h, width // w
    for worker in prange(nw):
        for plane in range(worker * planes // nw, (worker + 1) * planes // nw):
            for row in range(high):
                at, to, n = U((plane * height + row * h) * width), U((plane * high + row) * wide), U(wide)
                if h == 2 and w == 2:
                    _pool_pair(x, at, at + U(width), y, place, to, n)
                    continue
                for d in range(n):
                    y[to + d], place[to + d] = x[at + U(w) * d], 0
                for k in range(1, h * w):
                    _pool_place(x, at + U(k // w * width + k % w), U(w), y, place, to, n, np.uint8(k))


@compile
def _spread_pair(g, place, of, out, first, second, n):  # type: ignore[no-untyped-def]
    """Gradients of n windows of 2 x 2, as bits under a mask: no branch hangs on the places."""
    for d in range(n):
        value, k = g[of + d], place[of + d]
        out[first + PAIR * d] = value & -np.int64(k == 0)
        out[first + PAIR * d + U(1)] = value & -np.int64(k == 1)
        out[second + PAIR * d] = value & -np.int64(k == 2)
        out[second + PAIR * d + U(1)] = value & -np.int64(k == 3)


@compile
def _clear(out, at, end):  # type: ignore[no-untyped-def]
    for d in range(at, end):
        out[d] = 0


@Threaded
def _spread(g, place, shape, window, out, nw):  # type: ignore[no-untyped-def]
    """`g` and `out` are the bits of floats."""
    planes, height, width = shape
    h, w = window
    high, wide = height // h, width // w
    for worker in prange(nw):
        for plane in range(worker * planes // nw, (worker + 1) * planes // nw):
            for row in range(high):
                at, of, n = U((plane * height + row * h) * width), U((plane * high + row) * wide), U(wide)
                if h == 2 and w == 2:
                    _spread_pair(g, place, of, out, at, at + U(width), n)
                    if 2 * wide < width:
                        out[at + U(width - 1)], out[at + U(2 * width - 1)] = 0, 0
                    continue
                _clear(out, at, at + U(h * width))
                for d in range(n):
                    k = place[of + d]
                    out[at + U(k // w * width + k % w) + U(w) * d] = g[of + d]
            _clear(out, U((plane * height + high * h) * width), U((plane + 1) * height * width))


@guarded("max_pool")
def pool_planes(x: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Twin of `fastsnn_modules.max_pool.max_pool_naive`."""
    if x.dtype not in BOTH_TYPES:
        return NotImplemented
    x, (h, w) = x.contiguous(), window
    planes, height, width = x.shape
    y = empty((planes, height // h, width // w), x.dtype)
    place = empty(tuple(y.shape), torch.uint8)
    if y.numel():
        _pool(flat(x), (planes, height, width), (h, w), flat(y), flat(place))
    return y, place


@guarded("max_pool_backward")
def spread_gradient(grad: Tensor, place: Tensor, shape: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Twin of `fastsnn_modules.max_pool.max_pool_backward_naive`."""
    if grad.dtype not in BOTH_TYPES:
        return NotImplemented
    grad, place, (h, w) = grad.contiguous(), place.contiguous(), window
    out = empty((len(grad), *shape), grad.dtype)
    if out.numel():
        bits = np.int32 if grad.dtype == torch.float32 else np.int64
        _spread(flat(grad).view(bits), flat(place), (len(grad), *shape), (h, w), flat(out).view(bits))
    return out
