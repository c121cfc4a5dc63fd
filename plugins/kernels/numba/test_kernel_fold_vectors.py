"""Dot products and sums of values in vectors: the bits of the fixed order, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsnn_integer.deterministic import attend_naive, scan_naive
from fastsnn_kernel_numba.attention import attend
from fastsnn_kernel_numba.deterministic import scan
from fastsnn_kernel_numba.fold_vectors import SIZES, WIDTH, _fold_keys, _sum_values
from fastsnn_kernel_numba.numba_runtime import compile

F = np.float32


@compile
def folded(q, keys, stride, n, size, score):  # type: ignore[no-untyped-def]
    return _fold_keys(q.ctypes.data, keys.ctypes.data, 4 * stride, n, size, score.ctypes.data)


@compile
def summed(score, values, stride, held, n, norm, out):  # type: ignore[no-untyped-def]
    return _sum_values(score.ctypes.data, values.ctypes.data, 4 * stride, held, n, norm, out.ctypes.data)


@pytest.mark.parametrize("size", [*SIZES, 48])
@pytest.mark.parametrize("n", [WIDTH, 2 * WIDTH, 3 * WIDTH, 64, 24])
def test_scores_are_folded_in_the_fixed_order(size, n):
    draw = np.random.default_rng(size + n)
    q, keys = draw.standard_normal(size).astype(F), draw.standard_normal((size, 70)).astype(F) * F(1e3)
    score = np.full(n + 1, 7, F)
    if size not in SIZES or n % WIDTH:
        assert not folded(q, keys.reshape(-1), 70, n, size, score)
        assert (score == 7).all()
        return
    assert folded(q, keys.reshape(-1), 70, n, size, score)
    products, width = q[:, None] * keys[:, :n], size // 2
    part = products[:width] + products[width:]
    while width > 1:
        width //= 2
        part = part[:width] + part[width:]
    assert (score[:n] == part[0]).all()
    assert score[n] == 7


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("held", [0, 1, 9])
def test_values_are_added_one_after_the_other(size, held):
    draw = np.random.default_rng(size + held)
    score, values = draw.random(held + 1).astype(F), draw.standard_normal((held + 1, size + 5)).astype(F)
    out = draw.standard_normal(size).astype(F)
    wanted, norm = out.copy(), F(0.5)
    for weight, row in zip(score[:held], values, strict=False):
        wanted, norm = wanted + weight * row[:size], norm + weight
    assert summed(score, values.reshape(-1), size + 5, held, size, F(0.5), out) == norm
    assert (out == wanted).all()


@pytest.mark.parametrize("tokens", [2, 70])
@pytest.mark.parametrize("size", SIZES)
def test_heads_of_these_sizes_have_the_bits_of_the_naive_twins(size, tokens):
    torch.manual_seed(size + tokens)
    q, (k, v) = torch.randn(2, tokens, 4, size), torch.randn(2, 2, tokens, 2, size)
    allowed = torch.ones(2, tokens, tokens, dtype=torch.bool).tril().triu(-40)
    assert torch.equal(attend(q, k, v, allowed), attend_naive(q, k, v, allowed))
    s, z, gate = torch.randn(2, 2, size, size), torch.rand(2, 2, size), torch.rand(2, tokens, 2, size)
    keep = torch.ones(2, tokens, dtype=torch.bool)
    for mine, naive in zip(scan(q, k, v, gate, s, z, keep), scan_naive(q, k, v, gate, s, z, keep), strict=True):
        assert torch.equal(mine, naive)
