"""The exact forms in Numba against the naive twins: equal bits, on memory full of NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsnn_core import ops
from fastsnn_integer import deterministic

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
EDGES = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 1e30, -1e30, 87.5, -88.5, math.inf, -math.inf, math.nan])


def poison():
    from fastsnn_kernel_numba import numba_runtime

    for array in vars(numba_runtime._kept).values():
        array.view("u1").fill(0xFF)


def both(function, *args):
    """The outputs of the naive twin and of the compiled one, as bits (every NaN the same)."""
    rows = []
    for kernel in ("naive", "numba"):
        poison()
        with ops.use(kernel):
            out = function(*args)
        flat = [out] if isinstance(out, torch.Tensor) else [out[0], out[1], *out[2]]
        rows.append([torch.where(t.isnan(), torch.nan, t).contiguous().view(torch.int32) for t in flat])
    return rows


def numbers(draw, *shape):
    torch.manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(shape) * 10.0 ** draw(st.integers(-3, 2))
    if draw(st.integers(0, 4)) == 0 and x.numel():
        at = torch.randint(0, x.numel(), (1 + x.numel() // 50,))
        x.view(-1)[at] = EDGES[torch.randint(0, len(EDGES), at.shape)]
    return x


def same(function, *args):
    naive, numba = both(function, *args)
    for a, b in zip(naive, numba, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a, b)


@quick
@given(st.data(), st.sampled_from(list(deterministic.FORMS)))
def test_unary(data, form):
    same(deterministic.unary, numbers(data.draw, data.draw(st.sampled_from([0, 1, 15, 33, 1000]))), form)


@pytest.mark.parametrize("form", list(deterministic.FORMS))
def test_unary_at_the_edges(form):
    same(deterministic.unary, EDGES, form)


@quick
@given(st.data(), st.sampled_from(list(deterministic.SUMS)))
def test_row_sum(data, form):
    shape = data.draw(st.sampled_from([0, 1, 2, 7])), data.draw(st.sampled_from([1, 2, 3, 16, 48, 65, 768]))
    same(deterministic.row_sum, numbers(data.draw, *shape), form)


@quick
@given(st.data())
def test_norm(data):
    shape = data.draw(st.sampled_from([0, 1, 2, 7])), data.draw(st.sampled_from([1, 2, 3, 16, 48, 65, 768]))
    weight = numbers(data.draw, shape[1]) if data.draw(st.booleans()) else None
    same(deterministic.rms_norm, numbers(data.draw, *shape), weight, 1e-5)


@quick
@given(st.data())
def test_attend(data):
    draw = data.draw
    b, t, s = draw(st.integers(0, 3)), draw(st.sampled_from([0, 1, 2, 5, 9])), draw(st.sampled_from([1, 2, 65, 130]))
    g, r, k, v = (draw(st.sampled_from(x)) for x in ([1, 2], [1, 3], [1, 2, 6, 16], [1, 5, 16]))
    q, keys, values = numbers(draw, b, t, g * r, k), numbers(draw, b, s, g, k), numbers(draw, b, s, g, v)
    allowed = torch.rand(b, t, s) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    same(deterministic.attend, q, keys, values, allowed)


@quick
@given(st.data())
def test_scan(data):
    draw = data.draw
    b, t = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    g, r, k, v = (draw(st.sampled_from(x)) for x in ([1, 2], [1, 3], [1, 2, 6, 16], [1, 5, 16]))
    q, keys, values = numbers(draw, b, t, g * r, k), numbers(draw, b, t, g, k), numbers(draw, b, t, g, v)
    gate = -numbers(draw, b, t, g, k).abs().clamp(max=5.0) if draw(st.booleans()) else None
    reset = torch.rand(b, t) < 0.4 if draw(st.booleans()) else None
    state = numbers(draw, b, g, k, v), numbers(draw, b, g, k)
    same(deterministic.scan, q, keys, values, gate, state, reset)
