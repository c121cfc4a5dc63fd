"""Linear layers on spikes: on counts, on trains, on events; in floating point and in exact integers.

    y = scale · (Σ_s w_s (train_s @ Wᵀ)) + b = scale · (counts @ Wᵀ) + b = scale · Σ_events weight · W[:, i] + b

The bias enters once, after the sum. The three forms are equal; with integer weights they are equal bit for bit, since
sums of integers do not depend on their order. Weights have shape ``[out, in]`` as in `torch.nn.Linear`. Stored
`input_major`, one event touches one contiguous piece of memory, and silent inputs cost nothing: kernels choose by
layout. Integer layers (`fastsnn_integer.quantization`) go through `spike_sums`; what follows their sums is in
`fastsnn_integer.deterministic`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError
from fastsnn_core.ops.dispatch import Operator
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_modules.operands import (
    HALF,
    OperandError,
    Operands,
    OperandTypeError,
    check_room,
    imported_later,
    shown,
)


def count_linear_naive(counts: Tensor, weight: Tensor) -> Tensor:
    """``counts [N, D] @ weight [out, D]ᵀ`` in 64-bit integers: the definition."""
    counts = whole(counts, "counts")
    check_sums(counts.to(torch.float64).abs().sum(-1), weight)
    return counts.to(torch.int64) @ weight.to(torch.int64).T


def count_project_naive(counts: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor) -> Tensor:
    """float(sums) · scale · threshold of counts ``[N, D]``; scale ``[out]``, threshold ``[1, 1]`` or ``[N, 1]``."""
    return COUNT_LINEAR(counts.device.type, counts, weight).to(scale.dtype) * scale * threshold.to(scale.dtype)


def event_linear_naive(index: Tensor, weights: Tensor, rows: int, weight: Tensor) -> Tensor:
    """Sum of the weight rows that events name: flat coordinates into ``[rows, D]``, 64-bit integers ``[rows, out]``."""
    width = weight.shape[1]
    check_events(index, weights, rows, weight)
    out = torch.zeros(rows, weight.shape[0], dtype=torch.int64, device=weight.device)
    picked = weight.T.to(torch.int64)[index % width] * weights.to(torch.int64)[:, None]
    return out.index_add_(0, index // width, picked)


def check_sums(magnitudes: Tensor, weight: Tensor) -> None:
    """Refuse sums that 64 bits might not hold: `magnitudes` are Σ|c| of each row; nothing ever wraps."""
    if not magnitudes.numel() or not weight.numel():
        return
    largest = 128.0 if weight.dtype == torch.int8 else float(weight.to(torch.float64).abs().max())
    if float(magnitudes.max()) * largest >= 2.0**63:
        raise too_large(float(magnitudes.max()), largest)


def check_events(index: Tensor, weights: Tensor, rows: int, weight: Tensor) -> None:
    """The same for events: a row's sums are bounded by those of all rows, and counted only where that is too much."""
    magnitudes = weights.to(torch.float64).abs()
    try:
        check_sums(magnitudes.sum(), weight)
    except OverflowError:
        each = torch.zeros(rows, dtype=torch.float64, device=weights.device)
        check_sums(each.index_add_(0, index // weight.shape[1], magnitudes), weight)


def too_large(total: float, largest: float) -> OverflowError:
    """The error for sums that 64 bits might not hold."""
    return OverflowError(
        f"counts that add up to {total:.3g}, times weights up to {largest:.3g}, "
        "do not fit the 64 bits of an integer sum; use smaller counts or a larger threshold"
    )


def input_major_naive(weight: Tensor) -> Tensor:
    """A transposed copy, seen transposed."""
    return weight.T.contiguous().T


_PROJECT = Operands(
    "count_project", "counts [N,D] number", "weight [O,D] integer", "scale [O] full", "threshold [N|1,1] full"
)
_EVENTS = Operands("event_linear", "index [E] index", "weights [E] number", "weight [O,D] integer")


def check_event_linear(index: Tensor, weights: Tensor, rows: int, weight: Tensor) -> None:
    """The operands of `event_linear_naive`: every coordinate lies in ``[rows, D]``."""
    sizes = _EVENTS(index, weights, weight)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise OperandTypeError(f"event_linear: rows must be a number of rows, got {rows!r}")
    check_room("event_linear", "sums", rows, sizes["O"])
    room = rows * sizes["D"]
    if index.numel() and index.device.type != "meta":
        low, high = (int(n) for n in torch.aminmax(index))
        if low < 0 or high >= room:
            raise OperandError(
                f"event_linear: coordinate {low if low < 0 else high} is outside 0 … {room - 1} "
                f"({rows} rows of {sizes['D']} inputs)"
            )


_COUNTS = Operands("count_linear", "counts [N,D] number", "weight [O,D] integer")
_MATRIX = Operands("input_major", "weight [O,I] number")
COUNT_LINEAR = Operator(
    "count_linear", count_linear_naive, check=_COUNTS, samples=imported_later("fastsnn_events.samples.count_linear")
)
COUNT_PROJECT = Operator(
    "count_project",
    count_project_naive,
    plain=True,
    check=_PROJECT,
    samples=imported_later("fastsnn_events.samples.count_project"),
)
EVENT_LINEAR = Operator(
    "event_linear",
    event_linear_naive,
    check=check_event_linear,
    samples=imported_later("fastsnn_events.samples.event_linear"),
)
INPUT_MAJOR = Operator(
    "input_major",
    input_major_naive,
    plain=True,
    check=_MATRIX,
    samples=imported_later("fastsnn_events.samples.input_major"),
)


def whole(t: Tensor, what: str) -> Tensor:
    """Integers as they are; floats only when they are whole numbers."""
    if t.is_floating_point():
        if not torch.equal(t, t.round()):
            raise FastSNNError(f"{what} must be finite whole numbers for integer arithmetic")
        return t.to(torch.int64)
    return t


def count_linear(spikes: SpikeTensor, weight: Tensor) -> Tensor:
    """Exact integer accumulators ``[…, out]`` of the counts with an integer `weight` ``[out, D]``."""
    counts = spikes.counts
    if counts.requires_grad:
        counts = counts.detach()
    if counts.ndim == 2:
        return COUNT_LINEAR(counts.device.type, counts, weight)
    rows = math.prod(spikes.shape[:-1])
    out = COUNT_LINEAR(counts.device.type, counts.reshape(rows, counts.shape[-1]), weight)
    return out.reshape(*spikes.shape[:-1], weight.shape[0])


def event_linear(spikes: SpikeTensor, weight: Tensor) -> Tensor:
    """The same sums ``[…, out]`` of spikes ``[…, in]`` and `weight` ``[out, in]`` by events: only what spiked is read.

    Errors (OperandError): other widths, a weight that is no matrix, counts that are no whole numbers.
    """
    events = spikes.event()
    rows = math.prod(spikes.shape[:-1])
    out = EVENT_LINEAR(weight.device.type, events.index, events.weights, rows, weight)
    return out.reshape(*spikes.shape[:-1], weight.shape[0])


def spike_sums(spikes: SpikeTensor, weight: Tensor, inputs: slice = slice(None)) -> tuple[Tensor, str]:
    """``(accumulators […, out], path)`` over some `inputs`, whatever the view, and the kernel that took them.

    A train is taken slot by slot, Σ_s weight_s · (train_s @ Wᵀ), events as they are, counts at once: one result.
    """
    if spikes.form == "event" and inputs == slice(None):
        return event_linear(spikes, weight), EVENT_LINEAR.path
    if spikes.form != "dense":
        piece = SpikeTensor(spikes.counts[..., inputs], spikes.scale)
        return count_linear(piece, weight), COUNT_LINEAR.path
    total: Tensor | int = 0
    for slot, value in zip(spikes.train, spikes.weights.tolist()):
        total = total + value * count_linear(SpikeTensor(slot[..., inputs]), weight)
    if isinstance(total, int):
        total = torch.zeros(*spikes.shape[:-1], len(weight), dtype=torch.int64, device=weight.device)
    return total, COUNT_LINEAR.path


def count_project(spikes: SpikeTensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, str]:
    """``(numbers […, out], path)`` of counts with one threshold per token: float(counts @ Wᵀ) · scale · V."""
    counts, v = spikes.counts.detach(), spikes.scale
    rows = math.prod(spikes.shape[:-1])
    v = v.reshape(1, 1) if v.numel() == 1 else v.expand(*spikes.shape[:-1], 1).reshape(rows, 1)
    out = COUNT_PROJECT(counts.device.type, counts.reshape(rows, counts.shape[-1]), weight, scale, v)
    return out.reshape(*spikes.shape[:-1], weight.shape[0]), COUNT_LINEAR.path


def input_major(weight: Tensor) -> Tensor:
    """The same `weight` ``[out, in]``, stored so that the weights of one input are contiguous (strides 1 and out)."""
    return INPUT_MAJOR(weight.device.type, weight)


def check_fit(name: str, spikes: SpikeTensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse weights ``[out, in]`` that do not fit the channels of the spikes, before torch does in its own words."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        raise OperandTypeError(f"{name}: weight must be float [out, in], got {shown(weight)}")
    if not spikes.shape or spikes.shape[-1] != weight.shape[1]:
        raise OperandError(f"{name}: spikes {list(spikes.shape)} have not the {weight.shape[1]} channels of the weight")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise OperandError(f"{name}: bias must be [{weight.shape[0]}], got {list(bias.shape)}")


def spike_linear(spikes: SpikeTensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of spikes ``[…, in]`` with `weight` ``[out, in]`` and `bias` ``[out]``: values ``[…, out]``.

    On the counts, scaled once where the scale is one number per token; the bias comes last.
    The result has the weight's type; with half-precision weights all is computed in float32 and rounded once.
    `OperandError` (of a type: `OperandTypeError`): weights or a bias that do not fit the spikes.
    """
    check_fit("linear", spikes, weight, bias)
    kind = weight.dtype
    if kind in HALF:  # which holds neither a count beyond 256 (or 2048) nor a sum of them: rounded once, at the end
        weight, bias = weight.float(), None if bias is None else bias.float()
    scale, counts = spikes.scale, spikes.counts.to(weight.dtype)
    if scale.ndim and scale.shape[-1] != 1:  # a threshold per channel cannot leave the sum
        return F.linear(counts * scale.to(weight.dtype), weight, bias).to(kind)
    out = F.linear(counts, weight) * scale.to(weight.dtype)
    return (out if bias is None else out + bias).to(kind)
