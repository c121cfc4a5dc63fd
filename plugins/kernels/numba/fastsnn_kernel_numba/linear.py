"""`count_linear` and `event_linear` with INT8 weights: which way each call goes, and the dense way itself.

*events* (`fastsnn_kernel_numba.event`): few rows, weights stored input-major; reads the weight rows that spiked.
*dense*: an integer GEMM. Counts of 8 bits go through torch's INT8 product (oneDNN, VNNI); larger ones are written in
digits of base 128, c = Σ_p d_p · 128^p with -64 <= d_p < 64, one GEMM per digit over the inputs that have one. On a CPU
where that product is not exact or not fast (tried once), float32 GEMMs take its place, over pieces of the inputs so
short that no sum reaches 2^24: every float32 operation is then on whole numbers it holds exactly.

The way is chosen by the number of events per input: below `EVENTS_PER_INPUT` (measured, benchmarks/NOTES.md) skipping
wins. `fastsnn_core.ops.paths` says which it was.
"""

from __future__ import annotations

import math
import time
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_core.ops.dispatch import took
from fastsnn_core.ops.event import check_sums, whole
from fastsnn_kernel_numba.event import few
from fastsnn_kernel_numba.launch import Threaded, flat, workers
from fastsnn_kernel_numba.memory import lasting

FEW, EVENTS_PER_INPUT = 32, 7.0
U = np.uint64
SKIP = f"fewer than {EVENTS_PER_INPUT:g} events per input: only rows of weights that spiked are read"
MANY = f"{EVENTS_PER_INPUT:g} events per input or more: reading every weight once is faster"
BY_OUTPUT = "weights are stored output-major, so an event has no row to read"


def count_linear(counts: Tensor, weight: Tensor) -> Tensor:
    """Twin of `fastsnn_core.ops.event.count_linear_naive`."""
    if weight.dtype != torch.int8:
        return NotImplemented
    rows, wide = counts.shape
    if not counts.numel() or not len(weight):
        return torch.zeros(rows, len(weight), dtype=torch.int64)
    major = is_input_major(weight)
    if major and (rows < FEW or sparse(counts)):
        took("count_linear", "numba: events", SKIP)
        out = by_events(counts, weight, EVENTS_PER_INPUT * wide if rows < FEW else math.inf)
        if out is not None:
            return out
    took("count_linear", "numba: dense", MANY if major else BY_OUTPUT)
    return dense(counts, weight)


def event_linear(index: Tensor, weights: Tensor, rows: int, weight: Tensor) -> Tensor:
    """Twin of `fastsnn_core.ops.event.event_linear_naive`; events may come in any order, and more than once."""
    if weight.dtype != torch.int8:
        return NotImplemented
    check_sums(weights.to(torch.float64).abs().sum(), weight)
    tall, wide = weight.shape
    counts = torch.zeros(rows * wide, dtype=torch.int64).index_add_(0, index, weights.to(torch.int64)).view(rows, wide)
    if not is_input_major(weight) or not counts.numel() or not tall:
        took("event_linear", "numba: dense", BY_OUTPUT)
        return count_linear(counts, weight)
    took("event_linear", "numba: events", "events came in")
    return by_events(counts, weight, math.inf)


def by_events(counts: Tensor, weight: Tensor, limit: float) -> Any:
    """`few` over any number of rows; None where one call has `limit` events."""
    if len(counts) <= FEW:
        return few(counts, weight, limit)
    return torch.cat([few(piece, weight, limit) for piece in counts.split(FEW)])


def sparse(counts: Tensor) -> bool:
    """Do `FEW` rows have fewer than `EVENTS_PER_INPUT` events per input, on average?"""
    return int(torch.count_nonzero(counts)) * FEW < EVENTS_PER_INPUT * counts.numel()


def input_major(weight: Tensor) -> Tensor:
    """Twin of `fastsnn_core.ops.event.input_major_naive`, on huge pages: an event then misses no page table entry."""
    return lasting(weight.T).T


def is_input_major(weight: Tensor) -> bool:
    """Are the weights of one input contiguous?"""
    return weight.T.is_contiguous()


def dense(counts: Tensor, weight: Tensor) -> Tensor:
    """Exact sums ``[N, out]`` in 64 bits: one GEMM where all counts have 8 bits, one per digit otherwise."""
    low, high = (float(edge) for edge in torch.aminmax(counts))
    if max(-low, high) <= 127:
        return gemm(narrow(counts), weight).to(torch.int64)
    rest = whole(counts, "counts").to(torch.int64)
    check_sums(rest.to(torch.float64).abs().sum(-1), weight)
    out, shift = torch.zeros(len(rest), len(weight), dtype=torch.int64), 0
    while True:
        digit = ((rest + 64) & 127) - 64
        rest = (rest - digit) >> 7
        used = digit.any(0).nonzero()[:, 0]
        if len(used) > counts.shape[1] // 2:
            out += gemm(digit.to(torch.int8), weight).to(torch.int64) << shift
        elif len(used):  # large counts stay on few inputs
            out += gemm(digit[:, used].to(torch.int8), weight.T[used].T).to(torch.int64) << shift
        if not rest.any():
            return out
        shift += 7


def narrow(counts: Tensor) -> Tensor:
    """Counts of at most 127 in 8 bits; refuses fractions."""
    if counts.dtype != torch.float32:
        return whole(counts, "counts").to(torch.int8)
    out, fractions = torch.empty(counts.shape, dtype=torch.int8), np.zeros(workers(), np.int64)
    _narrow(flat(counts), flat(out), fractions)
    if fractions.any():
        raise ValueError("counts must be finite whole numbers for integer arithmetic")
    return out


@Threaded
def _narrow(counts, out, fractions, nw):  # type: ignore[no-untyped-def]
    """One pass: the conversion, and how many numbers it changed."""
    size = len(counts)
    for worker in prange(nw):
        found = 0
        for i in range(U(worker * size // nw), U((worker + 1) * size // nw)):
            c = np.int8(counts[i])
            out[i] = c
            found += np.float32(c) != counts[i]
        fractions[worker] = found


def gemm(digits: Tensor, weight: Tensor) -> Tensor:
    """``digits [N, K] @ weight [out, K]ᵀ``, both of 8 bits, in 32 or 64 bits: exact."""
    inputs = digits.shape[1]
    if 1 < inputs < 1 << 17 and trusted():  # 2^17 · 2^14 = 2^31; with one input torch 2.13 returns unwritten memory
        return torch._int_mm(digits, weight.T)
    step = ((1 << 24) - 1) // (128 * int(digits.to(torch.int16).abs().max().clamp_min(1)))
    out: Any = 0
    for first in range(0, inputs, step):
        piece = slice(first, first + step)
        out = out + (digits[:, piece].float() @ weight[:, piece].float().T).to(torch.int64)
    return out


@cache
def trusted() -> bool:
    """Tried once: is torch's INT8 product exact at the edges here, and not slow (without VNNI it is a plain loop)?"""
    lowest = torch.full((32, 1024), -128, dtype=torch.int8)
    some = torch.arange(32 * 1024).remainder(255).sub(127).to(torch.int8).view(32, 1024)
    for a, b in ((lowest, lowest), (lowest, some), (some, lowest), (some, some)):
        if not torch.equal(torch._int_mm(a, b.T).to(torch.int64), a.to(torch.int64) @ b.to(torch.int64).T):
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
