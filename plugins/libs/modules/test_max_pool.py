"""max_pool: values, places and gradients of torch's own pool, first and second derivative; what it leaves to torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastsnn_core.ops.dispatch import OPERATORS, kernels, path_of, record_path
from fastsnn_modules.max_pool import MAX_POOL_BACKWARD, max_pool_2d, max_pool_naive
from fastsnn_modules.operands import OperandError

needs_kernel = pytest.mark.skipif(
    not any("max_pool" in table for _, _, table in kernels()), reason="no compiled kernel of max_pool is installed"
)


@settings(max_examples=40, deadline=None)
@given(
    planes=st.integers(1, 3), high=st.integers(4, 17), wide=st.integers(4, 17),
    window=st.sampled_from([(2, 2), (1, 2), (3, 3), (4, 2), (1, 1)]), seed=st.integers(0, 99),
    double=st.booleans(),
)  # fmt: skip
def test_values_and_both_derivatives_are_those_of_torch(planes, high, wide, window, seed, double):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, planes, high, wide, generator=draw, dtype=torch.float64 if double else torch.float32).round()
    found = []
    for pool in (max_pool_2d, lambda x, window: F.max_pool2d(x, window, window)):
        leaf = x.clone().requires_grad_()
        y = pool(leaf, window)
        weight = torch.linspace(-1, 2, y.numel(), dtype=x.dtype).reshape(y.shape)
        (first,) = torch.autograd.grad((y.square() * weight).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(
            (first * torch.linspace(0, 1, x.numel(), dtype=x.dtype).view(x.shape)).sum(), leaf
        )
        found.append((y, first, second))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@needs_kernel
def test_ties_nan_and_infinities_have_the_places_of_torch():
    values = torch.tensor([0.0, 1.0, float("nan"), float("inf"), -float("inf")])
    windows = torch.cartesian_prod(values, values, values, values).view(-1, 2, 2)
    wide = torch.stack([windows, windows.flip(0)], 1)  # [625, 2, 2, 2]
    x = wide.permute(0, 2, 1, 3).reshape(-1, 2, 4)
    y, place = OPERATORS["max_pool"]("cpu", x, (2, 2))
    assert path_of("max_pool") == "numba"
    expected, where = max_pool_naive(x, (2, 2))
    assert torch.equal(place, where)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))


@needs_kernel
def test_a_pool_runs_on_the_kernel_and_under_transforms_on_torch():
    x = torch.randn(3, 2, 6, 6)
    record_path("max_pool", "")
    max_pool_2d(x, (2, 2))
    assert path_of("max_pool") == "numba"
    record_path("max_pool", "")
    rows = torch.func.vmap(lambda row: max_pool_2d(row, (2, 2)))(x)
    slope = torch.func.jvp(lambda row: max_pool_2d(row, (2, 2)), (x,), (torch.ones_like(x),))[1]
    assert path_of("max_pool") == ""
    assert torch.equal(rows, F.max_pool2d(x, 2))
    assert torch.equal(slope, torch.ones_like(rows))
    for odd in (x.half(), x.transpose(2, 3)):
        assert torch.equal(max_pool_2d(odd, (2, 2)), F.max_pool2d(odd, 2))
    assert path_of("max_pool") == ""


def test_places_outside_of_a_window_and_windows_that_do_not_tile_are_refused():
    grad = torch.zeros(1, 2, 2)
    with pytest.raises(OperandError, match="place 4 lies outside"):
        MAX_POOL_BACKWARD("cpu", grad, torch.full((1, 2, 2), 4, dtype=torch.uint8), (4, 4), (2, 2))
    with pytest.raises(OperandError, match="do not tile"):
        MAX_POOL_BACKWARD("cpu", grad, torch.zeros(1, 2, 2, dtype=torch.uint8), (6, 4), (2, 2))
    with pytest.raises(OperandError, match="lies inside"):
        OPERATORS["max_pool"]("cpu", torch.zeros(1, 2, 2), (3, 1))
    for window in ((0, 1), (1.5, 1), (True, 2), 2, (16, 17)):
        with pytest.raises(OperandError, match="two whole numbers"):
            OPERATORS["max_pool"]("cpu", torch.zeros(1, 20, 20), window)
    assert OPERATORS["max_pool"]("cpu", torch.zeros(0, 4, 4), (2, 2))[0].shape == (0, 2, 2)
