"""Integer products by torch's own ones, where every sum is a whole number that they hold exactly.

    y = counts @ weightᵀ;   |any partial sum of row n| <= Σ_i |c_ni| · max |w|

INT8 weights go through torch's INT8 product where the processor adds such products without saturation (VNNI). Else
floats: below 2^24 float32 holds all sums, below 2^53 float64 does, so no order of additions rounds anything. Either
way: the integers of `fastsnn_events.linear.count_linear_naive`, ten to a hundred times as fast, nothing to compile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastsnn_events import byte_product
from fastsnn_events.linear import count_linear_naive, whole

ROOM = ((torch.float32, 2.0**24), (torch.float64, 2.0**53))
"""Types and the magnitudes below which they hold every whole number."""

SPLIT, HELD = 128, 127 * 128
"""A count below `HELD` is 128 h + l with h and l in INT8."""

BLOCK = 1 << 19
"""Weights that are made floats at once: 2 MiB, which stay in the cache (a head of 28 M weights: 250 -> 25 ms)."""


def count_linear_in_floats(counts: Tensor, weight: Tensor) -> Tensor:
    """``counts [N, D] @ weight [out, D]ᵀ`` as 64-bit integers; errors are those of `count_linear_naive`."""
    bytes_ = weight.dtype == torch.int8 and len(weight) and byte_product.multiplies(weight.shape[1])
    if bytes_ and counts.numel():
        small = counts.to(torch.int8)
        if torch.equal(small.to(counts.dtype), counts):  # whole numbers, and no larger
            return byte_product.multiply_bytes(small, weight).to(torch.int64)
    counts = whole(counts, "counts")
    largest = 128.0 if weight.dtype == torch.int8 else float(weight.abs().max()) if weight.numel() else 0.0
    most = float(counts.to(torch.float64).abs().sum(-1).max()) if counts.numel() else 0.0
    if most and bytes_ and 0 <= int(counts.abs().max()) < HELD:  # |-2^63| is below 0
        return in_two_bytes(counts, weight)
    for kind, room in ROOM:
        if most * largest < room:
            return by_blocks(counts.to(kind), weight).to(torch.int64)
    return count_linear_naive(counts, weight)


def in_two_bytes(counts: Tensor, weight: Tensor) -> Tensor:
    """``counts [N, D] @ weight [out, D]ᵀ`` of whole counts below `HELD`, as 64-bit integers."""
    high = (counts.to(torch.int16) + SPLIT // 2) >> 7
    low = counts.to(torch.int16) - (high << 7)
    both = byte_product.multiply_bytes(torch.cat([high, low]).to(torch.int8), weight).to(torch.int64)
    return (both[: len(counts)] << 7) + both[len(counts) :]


def by_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """``x [N, D] @ weight [out, D]ᵀ`` in the type of x, whose floats of the weights are made block by block."""
    rows = max(1, BLOCK // max(1, weight.shape[1]))
    if len(weight) <= rows:
        return x @ weight.to(x.dtype).T
    floats, out = x.new_empty(rows, weight.shape[1]), x.new_empty(len(x), len(weight))
    for begin in range(0, len(weight), rows):
        some = weight[begin : begin + rows]
        out[:, begin : begin + rows] = x @ floats[: len(some)].copy_(some).T
    return out
