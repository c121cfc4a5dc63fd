"""Counts in 16 bits are those of the definition, or stay as they are where it keeps them."""

from __future__ import annotations

import pytest

pytest.importorskip("numba")
import torch

from fastsnn_integer.fused_row_ops import LIMIT, narrowed
from fastsnn_kernel_numba.narrow_counts import narrow_rows

EDGES = [32767.0, -32767.0, 32768.0, -32768.0, 1e6, 3e9, -3e9, 1e30, float("inf"), -float("inf"), float("nan")]


@pytest.mark.parametrize("place", [(0, 0), (2, 5), (6, 299)])
@pytest.mark.parametrize("edge", EDGES)
def test_one_large_count(edge, place):
    counts = torch.randint(-200, 200, (7, 300), generator=torch.Generator().manual_seed(0)).float()
    counts[0, 1] = 128.0  # 8 bits do not hold it
    counts[place] = edge
    found, wanted = narrow_rows(counts), narrowed(counts)
    assert found.dtype == wanted.dtype
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("beyond", [0, 1])
def test_the_largest_sum_of_a_row(beyond):
    counts = torch.zeros(3, 1024)
    counts[1, :512] = -32767.0
    counts[1, 512] = LIMIT - 512 * 32767 - 1 + beyond
    found, wanted = narrow_rows(counts), narrowed(counts)
    assert found.dtype == wanted.dtype == (torch.float32 if beyond else torch.int16)
    assert torch.equal(found, wanted)
