"""What coders share: whole counts or checked values out of what they are given, refusing what does not fit."""

from __future__ import annotations

import torch
from torch import Tensor

from fastsnn_core.spike_tensor import SpikeTensor


def whole_counts(x: SpikeTensor | Tensor) -> tuple[Tensor, Tensor | float]:
    """``(counts int64 […], scale)`` of spikes or of a bare tensor of whole numbers; fractions are refused."""
    counts, scale = (x.counts, x.scale) if isinstance(x, SpikeTensor) else (x, 1.0)
    counts = counts.detach()
    if counts.is_floating_point():
        if not bool(torch.isfinite(counts).all()):
            raise ValueError("counts must be finite; got NaN or infinity")
        if not torch.equal(counts, counts.round()):
            raise ValueError("counts must be whole numbers; use a neuron (or a value coder) before a count coder")
    return counts.to(torch.int64), scale


def fit(counts: Tensor, steps: int | None, needed: int, coder: str) -> int:
    """The number of steps to use: `steps` if the largest count fits, else an error that names both."""
    if steps is None:
        return max(1, needed)
    if needed > steps:
        largest = int(counts.abs().max())
        raise ValueError(f"count {largest} needs {needed} {coder} steps, {steps} given; nothing was truncated")
    return steps


def extremes(counts: Tensor) -> tuple[int, int]:
    """Smallest and largest count; 0, 0 for an empty tensor."""
    return (int(counts.min()), int(counts.max())) if counts.numel() else (0, 0)


def refuse_negative(counts: Tensor, coder: str, instead: str) -> None:
    """An unsigned code cannot carry a negative count."""
    low = extremes(counts)[0]
    if low < 0:
        raise ValueError(f"{coder} spikes carry no sign and the smallest count is {low}; use {instead}")


def finite_values(x: SpikeTensor | Tensor, coder: str) -> Tensor:
    """The values in float64, all finite."""
    values = (x.value() if isinstance(x, SpikeTensor) else x).detach().to(torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{coder} codes finite values; got NaN or infinity")
    return values


def unit_values(x: SpikeTensor | Tensor, coder: str) -> Tensor:
    """The values in float64, all in [0, 1]."""
    values = finite_values(x, coder)
    if values.numel() and (float(values.min()) < 0 or float(values.max()) > 1):
        low, high = float(values.min()), float(values.max())
        raise ValueError(f"{coder} codes values in [0, 1]; got {low:g} … {high:g}. Scale them first")
    return values
