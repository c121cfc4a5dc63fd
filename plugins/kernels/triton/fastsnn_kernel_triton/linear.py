"""Exact integer products of spikes with INT8 weights: counts as INT8 digits on the tensor cores, events by row.

A count is written in digits of base 128 (balanced: -64 … 63), and each digit is one INT8 product whose sums fit 32
bits; the digits meet in 64 bits. Events of a row are summed in 64 bits, so their order does not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsnn_events.linear import check_events, check_sums, whole
from fastsnn_modules.operands import guarded

TILE, DEPTH, COLUMNS, EVENTS = 32, 64, 64, 16
LONGEST = 2**31 // (64 * 128) - DEPTH
"""Inputs whose 32-bit sum of digits times weights cannot wrap."""


@triton.jit
def digit_kernel(
    digits, weight, out, rows, width, columns, stride_out, stride_in, place,
    TILE: tl.constexpr, DEPTH: tl.constexpr, COLUMNS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """out (+)= place · digits [N,D] @ weight [out,D]ᵀ."""
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    o = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((TILE, COLUMNS), dtype=tl.int32)
    for begin in range(0, width, DEPTH):
        i = begin + tl.arange(0, DEPTH)
        a = tl.load(
            digits + n[:, None].to(tl.int64) * width + i[None], (n[:, None] < rows) & (i[None] < width), other=0
        )
        at = o[None].to(tl.int64) * stride_out + i[:, None].to(tl.int64) * stride_in
        w = tl.load(weight + at, (o[None] < columns) & (i[:, None] < width), other=0)
        total += tl.dot(a, w, out_dtype=tl.int32)
    where = out + n[:, None].to(tl.int64) * columns + o[None]
    mine = (n[:, None] < rows) & (o[None] < columns)
    result = total.to(tl.int64) * place
    if ADD:
        result += tl.load(where, mine, other=0)
    tl.store(where, result, mine)


@triton.jit
def event_kernel(
    inputs, weights, starts, weight, out, columns, stride_out, stride_in, COLUMNS: tl.constexpr, EVENTS: tl.constexpr
):
    """One row's events times their weight rows."""
    row, o = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), dtype=tl.int64)
    end = tl.load(starts + row + 1)
    for begin in range(tl.load(starts + row), end, EVENTS):
        e = begin + tl.arange(0, EVENTS)
        i = tl.load(inputs + e, e < end, other=0)
        c = tl.load(weights + e, e < end, other=0)
        at = i[:, None] * stride_in + o[None].to(tl.int64) * stride_out
        w = tl.load(weight + at, (e[:, None] < end) & (o[None] < columns), other=0)
        total += tl.sum(w.to(tl.int64) * c[:, None], 0)
    tl.store(out + row.to(tl.int64) * columns + o, total, o < columns)


@guarded("count_linear")
def count_linear(counts: Tensor, weight: Tensor) -> Tensor:
    """As `fastsnn_events.linear.count_linear_naive`, for INT8 weights."""
    (n, width), columns = counts.shape, weight.shape[0]
    if weight.dtype != torch.int8 or width > LONGEST:
        return NotImplemented
    counts = whole(counts, "counts").to(torch.int64)
    check_sums(counts.to(torch.float64).abs().sum(-1), weight)
    out = counts.new_zeros(n, columns)
    if not out.numel() or not width:
        return out
    grid, place, left = (triton.cdiv(n, TILE), triton.cdiv(columns, COLUMNS)), 1, counts
    while bool(left.any()):
        last = bool(((left >= -128) & (left <= 127)).all())
        digit = left if last else (left + 64) % 128 - 64
        digit_kernel[grid](
            digit.to(torch.int8).contiguous(), weight, out, n, width, columns, *weight.stride(), place,
            TILE, DEPTH, COLUMNS, place > 1,
        )  # fmt: skip
        left = torch.zeros_like(left) if last else (left - digit) // 128
        place *= 128
    return out


@guarded("event_linear")
def event_linear(index: Tensor, weights: Tensor, rows: int, weight: Tensor) -> Tensor:
    """As `fastsnn_events.linear.event_linear_naive`, for INT8 weights."""
    columns, width = weight.shape
    if weight.dtype != torch.int8:
        return NotImplemented
    check_events(index, weights, rows, weight)
    out = torch.zeros(rows, columns, dtype=torch.int64, device=weight.device)
    if not len(index) or not out.numel():
        return out
    if bool((index[1:] < index[:-1]).any()):
        index, order = index.sort()
        weights = weights[order]
    bounds = torch.arange(rows + 1, device=index.device) * width
    starts = torch.searchsorted(index, bounds.to(index.dtype))
    inputs, values = (index % width).to(torch.int64), whole(weights, "events").to(torch.int64)
    grid = (rows, triton.cdiv(columns, COLUMNS))
    event_kernel[grid](inputs, values, starts, weight, out, columns, *weight.stride(), COLUMNS, EVENTS)
    return out
