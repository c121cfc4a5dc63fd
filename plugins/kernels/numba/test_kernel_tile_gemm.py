"""The INT8 product of many rows by tiles: exact at every edge, and not taken where it does not fit."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from fastsnn_events import byte_product
from fastsnn_kernel_numba import integer_linear, numba_runtime, tile_gemm
from fastsnn_kernel_numba.tile_gemm import MOST_INPUTS, ROWS

needs_avx2 = pytest.mark.skipif(not tile_gemm.AVX2, reason="this CPU has no AVX2, so the tiles are not taken")


def poison():
    """Working memory holds anything."""
    for array in vars(numba_runtime._kept).values():
        if isinstance(array, np.ndarray):
            array.view(np.uint8).fill(0xFF)


@needs_avx2
@pytest.mark.parametrize("seed", range(int(os.environ.get("FASTSNN_ROUNDS", "40"))))
def test_exact(seed):
    draw = torch.Generator().manual_seed(seed)
    rows, wide, tall = (int(torch.randint(1, most, (), generator=draw)) for most in (3 * ROWS, 300, 200))
    weight = torch.randint(-128, 128, (wide, tall + 3), generator=draw, dtype=torch.int8)[:, :tall].T
    if seed % 4 == 0:
        weight = torch.full((wide, tall), -128, dtype=torch.int8).T
    counts = torch.randint(-3, 4, (rows, wide), generator=draw)
    bursts, largest = torch.rand(rows, wide, generator=draw) < 0.03, (127, 128, 1000, 100_000)[seed % 4]
    counts[bursts] = torch.randint(-largest, largest + 1, (int(bursts.sum()),), generator=draw)
    poison()
    out = tile_gemm.tile_gemm(counts if seed % 2 else counts.float(), weight)
    assert out is not None
    assert torch.equal(out.long(), counts @ weight.long().T)
    if integer_linear.by_torch(integer_linear.ENOUGH, wide):
        poison()
        assert torch.equal(tile_gemm.tile_gemm(counts, weight, True), out)


@needs_avx2
def test_sums_at_the_edge_of_32_bits():
    weight = torch.full((3, 40), -128, dtype=torch.int8).T
    counts = torch.tensor([[0, (1 << 24) - 1, 0]] * 9)
    out = tile_gemm.tile_gemm(counts, weight)
    assert out is None  # every third count is an event
    counts, weight = counts.repeat(1, 40) * (torch.arange(120) == 1), torch.full((120, 40), -128, dtype=torch.int8).T
    out = tile_gemm.tile_gemm(counts, weight)
    assert (out == -128 * ((1 << 24) - 1)).all()
    counts[4, 1] += 1
    assert tile_gemm.tile_gemm(counts, weight) is None


@needs_avx2
@pytest.mark.parametrize("bad", [0.5, float("nan"), float("inf"), -float("inf"), 3e9])
def test_what_is_no_count_is_left_to_others(bad):
    counts = torch.ones(9, 64)
    counts[7, 3] = bad
    assert tile_gemm.tile_gemm(counts, torch.ones(64, 8, dtype=torch.int8).T) is None


@needs_avx2
def test_the_same_bits_on_two_threads():
    draw = torch.Generator().manual_seed(0)
    digits = torch.randint(-9, 10, (70, 200), generator=draw, dtype=torch.int8)
    weight = torch.randint(-128, 128, (200, 150), generator=draw, dtype=torch.int8).T
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(tile_gemm.tile_gemm(digits, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_where_it_does_not_fit():
    weight = torch.ones(300, 40, dtype=torch.int8).T
    assert tile_gemm.tile_gemm(torch.full((8, 300), 60), weight) is None  # most would be events
    assert tile_gemm.tile_gemm(torch.ones(8, 300), weight.contiguous()) is None  # output-major
    wide = torch.ones(MOST_INPUTS + 1, 2, dtype=torch.int8).T
    assert tile_gemm.tile_gemm(torch.ones(1, MOST_INPUTS + 1), wide) is None
    assert tile_gemm.tile_gemm(torch.ones(0, 300), weight) is None


@needs_avx2
@pytest.mark.skipif(not integer_linear.by_torch(64, 90), reason="torch's INT8 product is not fast on this CPU")
def test_the_dense_product_leaves_large_counts_of_many_rows_to_events(monkeypatch):
    monkeypatch.setattr(integer_linear, "_digits", None)  # no product per digit
    draw = torch.Generator().manual_seed(1)
    counts = torch.randint(-9, 10, (70, 90), generator=draw)
    counts[3, 5], counts[69, 89] = 100_000, -128
    weight = torch.randint(-128, 128, (90, 60), generator=draw, dtype=torch.int8).T
    assert torch.equal(integer_linear.dense_product(counts, weight).long(), counts @ weight.long().T)


@needs_avx2
def test_the_dense_product_takes_it_without_vnni(monkeypatch):
    monkeypatch.setattr(byte_product, "trusted", lambda: False)
    taken = []
    monkeypatch.setattr(integer_linear, "tile_gemm", lambda *a: taken.append(a) or tile_gemm.tile_gemm(*a))
    draw = torch.Generator().manual_seed(1)
    counts = torch.randint(-9, 10, (50, 90), generator=draw)
    counts[3, 5] = 100_000  # digits of base 128: several products
    weight = torch.randint(-128, 128, (90, 60), generator=draw, dtype=torch.int8).T
    assert torch.equal(integer_linear.dense_product(counts, weight).long(), counts @ weight.long().T)
    assert len(taken) == 1
