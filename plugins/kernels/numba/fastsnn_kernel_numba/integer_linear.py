"""`count_linear` and `event_linear` with INT8 weights: which way each call goes, and the dense way itself.

*events* (`fastsnn_kernel_numba.gemm_events`): few rows, weights stored input-major; reads the weight rows that spiked.
*dense*: an integer GEMM. Counts of 8 bits go through torch's INT8 product (oneDNN, VNNI); larger ones are written in
digits of base 128, c = Σ_p d_p · 128^p with -64 <= d_p < 64, one GEMM per digit over the inputs that have one. On a CPU
where that product is not exact or not fast (tried once), ours of tiles takes its place (`tile_gemm`), large counts and
all. Where that does not fit, float32 GEMMs over pieces of the inputs so short that no sum reaches 2^24 do the digits:
every float32 operation is then on whole numbers it holds exactly.

The way is chosen by the number of events per input: below `break_even` skipping wins. It is measured once per shape and
process on weights of at least `MEASURED` bytes; smaller ones, where neither way costs anything, take
`EVENTS_PER_INPUT` (benchmarks/NOTES.md). `fastsnn_core.ops.paths` says which it was. Both give the same integers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_core.ops.dispatch import record_path
from fastsnn_events import byte_product
from fastsnn_events.linear import check_events, check_sums, whole
from fastsnn_kernel_numba import cold_start, gemv_events
from fastsnn_kernel_numba.buffer_pool import empty, persistent_copy
from fastsnn_kernel_numba.gemm_events import event_gemm
from fastsnn_kernel_numba.numba_runtime import Threaded, flat, workers
from fastsnn_kernel_numba.tile_gemm import tile_gemm
from fastsnn_modules.operands import guarded

FEW, EVENTS_PER_INPUT, MEASURED, OUTPUTS = 32, 7.0, 1 << 20, 1 << 12
ENOUGH = 64  # rows from which torch's product of 8 bits is faster than ours
U, SMALLEST = np.uint64, -(1 << 63)
SKIP = "fewer than {:.3g} events per input: only rows of weights that spiked are read"
EVENTS, FEW_EVENTS = "numba: events", SKIP.format(EVENTS_PER_INPUT)
MANY = "{:.3g} events per input or more: reading every weight once is faster"
BY_OUTPUT = "weights are stored output-major, so an event has no row to read"


@guarded("count_linear")
def count_linear(counts: Tensor, weight: Tensor) -> Tensor:
    """Twin of `fastsnn_events.linear.count_linear_naive`."""
    if weight.dtype != torch.int8:
        return NotImplemented
    if len(counts) == 1 and (out := gemv_events.product(counts, weight)) is not None:
        record_path("count_linear", EVENTS, FEW_EVENTS)
        return out
    return sums(counts, weight).to(torch.int64)


@guarded("count_project")
def count_project(counts: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor) -> Tensor:
    """Twin of `fastsnn_events.linear.count_project_naive`: what follows the sums in one pass over them."""
    if weight.dtype != torch.int8 or scale.dtype != torch.float32 or threshold.dtype != torch.float32:
        return NotImplemented
    scale, threshold = scale.contiguous(), threshold.contiguous()
    if len(counts) == 1 and (out := gemv_events.product(counts, weight, scale, threshold)) is not None:
        record_path("count_linear", EVENTS, FEW_EVENTS)
        return out
    total = sums(counts, weight)
    out = empty(tuple(total.shape), torch.float32)
    _scale(flat(total.contiguous()), flat(scale), flat(threshold), len(scale), flat(out))
    return out


def one_row(counts: Tensor, weight: Tensor, scale: Tensor | None = None, threshold: Tensor | None = None) -> Any:
    """`count_linear` and `count_project` of a single row by events, which is compiled first; NotImplemented else."""
    if not cold_start.COLD.has(cold_start.ONE_ROW) or len(counts) != 1 or weight.dtype != torch.int8:
        return NotImplemented
    if scale is not None and threshold is not None:
        if scale.dtype != torch.float32 or threshold.dtype != torch.float32:
            return NotImplemented
        scale, threshold = scale.contiguous(), threshold.contiguous()
    out = gemv_events.product(counts, weight, scale, threshold)
    if out is None:
        return NotImplemented
    record_path("count_linear", EVENTS, FEW_EVENTS)
    return out


@Threaded
def _scale(total, scale, threshold, tall, out, nw):  # type: ignore[no-untyped-def]
    """float(sum) · scale · V, row after row; one V for all rows, or one each."""
    rows, each = (len(total) // tall if tall else 0), len(threshold) > 1
    for worker in prange(nw):
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            at, v = U(row * tall), threshold[row if each else 0]
            for i in range(U(tall)):
                out[at + i] = np.float32(total[at + i]) * scale[i] * v


def sums(counts: Tensor, weight: Tensor) -> Tensor:
    """Exact sums in 32 or 64 bits."""
    rows, wide = counts.shape
    if not counts.numel() or not len(weight):
        return torch.zeros(rows, len(weight), dtype=torch.int64)
    if not is_input_major(weight):
        record_path("count_linear", "numba: dense", BY_OUTPUT)
        return dense_product(counts, weight)
    limit = break_even(rows, weight)
    if rows < FEW or sparse(counts, limit):
        record_path("count_linear", EVENTS, SKIP.format(limit))
        out = by_events(counts, weight, limit * wide if rows < FEW else math.inf)
        if out is not None:
            return out
    record_path("count_linear", "numba: dense", MANY.format(limit))
    return dense_product(counts, weight)


_measured: dict[tuple[int, ...], float] = {}


def break_even(rows: int, weight: Tensor) -> float:
    """Events per input from which the dense way is faster, for up to `rows` rows (taken to the next power of two)."""
    rows = min(FEW, 1 << (rows - 1).bit_length())
    if rows == 1 or weight.numel() < MEASURED:  # one row has one event per input at the most, and skipping wins there
        return EVENTS_PER_INPUT
    key = (rows, *weight.shape, workers())
    if key not in _measured:
        _measured[key] = measure_break_even(rows, weight)
    return _measured[key]


def measure_break_even(rows: int, weight: Tensor) -> float:
    """Time at two densities and of the dense way; where the line through the two meets the third."""
    low, high = 1.0, min(float(rows), 6.0)
    generator = torch.Generator().manual_seed(0)

    def pattern(events: float) -> Tensor:
        return (torch.rand(rows, weight.shape[1], generator=generator) < events / rows).float()

    def seconds(way: Callable[[], Any]) -> float:
        times = []
        for _ in range(4):
            began = time.perf_counter()
            way()
            times.append(time.perf_counter() - began)
        return min(times[1:])

    sparse_, busy = pattern(low), pattern(high)
    first, second = (seconds(lambda c=c: event_gemm(c, weight, math.inf)) for c in (sparse_, busy))  # type: ignore[misc]
    slope = max((second - first) / (high - low), 1e-9)
    return min(max(low + (seconds(lambda: dense_product(busy, weight)) - first) / slope, 1.0), float(FEW))


@guarded("event_linear")
def event_linear(index: Tensor, weights: Tensor, rows: int, weight: Tensor) -> Tensor:
    """Twin of `fastsnn_events.linear.event_linear_naive`; events may come in any order, and more than once."""
    if weight.dtype != torch.int8:
        return NotImplemented
    check_events(index, weights, rows, weight)
    tall, wide = weight.shape
    counts = torch.zeros(rows * wide, dtype=torch.int64).index_add_(0, index, weights.to(torch.int64)).view(rows, wide)
    if not is_input_major(weight) or not counts.numel() or not tall:
        record_path("event_linear", "numba: dense", BY_OUTPUT)
        return count_linear(counts, weight)
    record_path("event_linear", EVENTS, "events came in")
    if rows == 1 and (out := gemv_events.product(counts, weight)) is not None:
        return out
    return by_events(counts, weight, math.inf)


def by_events(counts: Tensor, weight: Tensor, limit: float) -> Any:
    """`event_gemm` over any number of rows; None where one call has `limit` events."""
    if len(counts) <= FEW:
        return event_gemm(counts, weight, limit)
    pieces: list[Any] = [event_gemm(piece, weight, limit) for piece in counts.split(FEW)]
    return torch.cat(pieces)


def sparse(counts: Tensor, limit: float) -> bool:
    """Do `FEW` rows have fewer than `limit` events per input, on average? Asked of some rows."""
    some = counts[:: max(1, len(counts) // FEW)]
    return int(torch.count_nonzero(some)) * FEW < limit * some.numel()


@guarded("input_major")
def input_major(weight: Tensor) -> Tensor:
    """Twin of `fastsnn_events.linear.input_major_naive`, on huge pages: an event then misses no page table entry."""
    return persistent_copy(weight.T).T


def is_input_major(weight: Tensor) -> bool:
    """Are the weights of one input contiguous? They may be a part of a larger matrix's."""
    return weight.T.is_contiguous() or (weight.stride(0) == 1 and weight.stride(1) >= len(weight))


def dense_product(counts: Tensor, weight: Tensor) -> Tensor:
    """Exact sums ``[N, out]`` in 32 or 64 bits: one GEMM where all counts have 8 bits, one per digit otherwise."""
    if counts.dtype != torch.float32:
        counts = whole(counts, "counts")
        counts = counts.to(torch.float32 if counts.dtype == torch.int8 else torch.int64)
    if not byte_product.trusted() and (out := tile_gemm(counts, weight)) is not None:
        return out
    nw = workers()
    low, state = torch.empty(counts.shape, dtype=torch.int8), np.zeros((nw, 2), np.int64)
    _narrow.on(nw, flat(counts.contiguous()), flat(low), state)
    if not state.any():
        return gemm(low, weight)
    if by_torch(*counts.shape) and (out := tile_gemm(counts, weight, True)) is not None:
        return out
    wide = counts.shape[1]
    used = np.zeros((nw, wide), np.uint8)
    state[:] = 0
    _digits.on(nw, flat(counts.contiguous()), flat(low), len(counts), wide, used.reshape(-1), state)
    if state[:, 0].any():
        whole(counts, "counts")  # refuses fractions and what is not finite
        check_sums(counts.to(torch.float64).abs().sum(-1), weight)  # and whole numbers beyond 64 bits
    if float(state[:, 1].max()) * wide >= 2.0**56:
        check_sums(counts.to(torch.float64).abs().sum(-1), weight)
    columns = torch.from_numpy(used.any(0)).nonzero()[:, 0]  # large counts stay on few inputs
    rest = (counts[:, columns].to(torch.int64) - low[:, columns]) >> 7
    out = gemm(low, weight).to(torch.int64)
    return out if not len(columns) else out + (dense_product(rest, weight.T[columns].T).to(torch.int64) << 7)


@Threaded
def _narrow(counts, out, state, nw):  # type: ignore[no-untyped-def]
    """One pass: the conversion to 8 bits, and whether any count does not fit ±127 or is no whole number."""
    size = len(counts)
    for worker in prange(nw):
        found = 0
        for i in range(U(worker * size // nw), U((worker + 1) * size // nw)):
            c = np.int32(counts[i])
            out[i] = np.int8(c)
            found += (c != counts[i]) | (c > 127) | (c < -127)  # abs(-2³¹) is negative
        state[worker, 0] = found


@Threaded
def _digits(counts, low, rows, wide, used, state, nw):  # type: ignore[no-untyped-def]
    """The digit d = ((c + 64) mod 128) - 64 of every count, which inputs need more, and max|c|."""
    for worker in prange(nw):
        found, most, own = 0, np.int64(0), U(worker * wide)
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            at = U(row * wide)
            for i in range(U(wide)):
                c = np.int64(counts[at + i])
                found += (c != counts[at + i]) | (c == SMALLEST)
                d = ((c + np.int64(64)) & np.int64(127)) - np.int64(64)
                low[at + i] = np.int8(d)
                used[own + i] |= np.uint8(c != d)
                most = max(most, abs(c))
        state[worker, 0], state[worker, 1] = found, most


def gemm(digits: Tensor, weight: Tensor) -> Tensor:
    """``digits [N, K] @ weight [out, K]ᵀ``, both of 8 bits, in 32 or 64 bits: exact."""
    inputs = digits.shape[1]
    if byte_product.multiplies(inputs):
        return byte_product.multiply_bytes(digits, weight)
    step = ((1 << 24) - 1) // (128 * int(digits.to(torch.int16).abs().max().clamp_min(1)))
    out = torch.zeros(len(digits), len(weight), dtype=torch.int32 if inputs < 1 << 17 else torch.int64)
    for first in range(0, inputs, step):
        piece = digits[:, first : first + step].float()
        for rows, sums in zip(weight.split(OUTPUTS), out.split(OUTPUTS, 1)):  # few floats at a time
            sums += (piece @ rows[:, first : first + step].float().T).to(out.dtype)
    return out


def by_torch(rows: int, inputs: int) -> bool:
    """Is torch's product the one for rows whose large counts are events?"""
    return rows >= ENOUGH and byte_product.multiplies(inputs)
