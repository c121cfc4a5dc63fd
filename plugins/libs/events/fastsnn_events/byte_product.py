"""Torch's product of INT8 matrices in 32 bits: where it is exact, and no slower than one of floats."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch import Tensor

MOST_INPUTS = 1 << 17
"""Inputs below which sums of products of two INT8 numbers fit 32 bits: 2^17 · 2^14 = 2^31."""


def multiplies(inputs: int) -> bool:
    """Is `multiply_bytes` the one for so many inputs? (With one input torch 2.13 returns unwritten memory.)"""
    return 1 < inputs < MOST_INPUTS and trusted()


def multiply_bytes(digits: Tensor, weight: Tensor) -> Tensor:
    """``digits [N, K] @ weight [out, K]ᵀ``, both of 8 bits, in 32; of inputs that `multiplies`."""
    return torch._int_mm(digits, weight.T)


@cache
def trusted() -> bool:
    """Tried once: is torch's INT8 product exact at the edges here, and not slow (without VNNI it is a plain loop)?"""
    lowest = torch.full((32, 1024), -128, dtype=torch.int8)
    some = torch.arange(32 * 1024).remainder(255).sub(127).to(torch.int8).view(32, 1024)
    for a, b in ((lowest, lowest), (lowest, some), (some, lowest), (some, some)):
        if not torch.equal(multiply_bytes(a, b).to(torch.int64), a.to(torch.int64) @ b.to(torch.int64).T):
            return False
    left, right = some.repeat(2, 1), some.repeat(8, 1)
    return _seconds(torch._int_mm, left, right.T) <= 4 * _seconds(torch.mm, left.float(), right.float().T)


def _seconds(function: Any, *args: Any) -> float:
    times = []
    for _ in range(4):
        start = time.perf_counter()
        function(*args)
        times.append(time.perf_counter() - start)
    return min(times)
