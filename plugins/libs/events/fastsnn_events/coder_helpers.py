"""What coders share: whole counts or checked values out of what they are given, refusing what does not fit.

And their spike-time form (`integrate`): a membrane that reaches the count by integrate-and-fire over the steps of one
token, without being told the count. With u in thresholds and first the level of the first spike (1/2 where the neuron
rounds, 1 for a step), the membrane starts at u + 1 - first; at a step of weight w it fires when it reaches w, and gives
w back. What it gave in the end is round(u): v0 = V/2 is what makes it round and not cut. A membrane exactly at the last
threshold is a tie, |u| half-way between two counts: it fires only if its spikes so far are odd, which is half to even.
All of this is exact: u is a float32 and the membrane a float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastsnn_core.errors import ArgumentError, FastSNNError
from fastsnn_core.moved import renamed
from fastsnn_core.spike_tensor import SpikeTensor


def whole_counts(x: SpikeTensor | Tensor) -> tuple[Tensor, Tensor | float]:
    """``(counts int64 […], scale)`` of spikes or of a bare tensor of whole numbers; fractions are refused."""
    if not isinstance(x, SpikeTensor | Tensor):
        raise ArgumentError(f"a coder takes a SpikeTensor or a tensor of whole counts, got {type(x).__name__}")
    counts, scale = (x.counts, x.scale) if isinstance(x, SpikeTensor) else (x, 1.0)
    if counts.is_complex():
        raise ArgumentError(f"counts are real whole numbers, got {counts.dtype}")
    counts = counts.detach()
    if counts.is_floating_point():
        if not bool(torch.isfinite(counts).all()):
            raise FastSNNError("counts must be finite; got NaN or infinity")
        if not torch.equal(counts, counts.round()):
            raise FastSNNError("counts must be whole numbers; use a neuron (or a value coder) before a count coder")
        if counts.numel() and float(counts.abs().max()) >= 2.0**63:
            raise FastSNNError(f"count {float(counts.abs().max()):.4g} does not fit 64 bits")
    return counts.to(torch.int64), scale


def check_steps_fit(counts: Tensor, steps: int | None, needed: int, coder: str) -> int:
    """The number of steps to use: `steps` if the largest count fits, else an error that names both."""
    if steps is None:
        return max(1, needed)
    if needed > steps:
        largest = int(counts.abs().max())
        raise FastSNNError(f"count {largest} needs {needed} {coder} steps, {steps} given; nothing was truncated")
    return steps


def extremes(counts: Tensor) -> tuple[int, int]:
    """Smallest and largest count; 0, 0 for an empty tensor."""
    return (int(counts.min()), int(counts.max())) if counts.numel() else (0, 0)


def refuse_negative(counts: Tensor, coder: str, instead: str) -> None:
    """An unsigned code cannot carry a negative count."""
    low = extremes(counts)[0]
    if low < 0:
        raise FastSNNError(f"{coder} spikes carry no sign and the smallest count is {low}; use {instead}")


def integrate(level: Tensor, weights: list[int], even: bool) -> tuple[Tensor, Tensor]:
    """``(membranes, spikes) [S, …]`` of membranes that start at `level` >= 0 and fire at thresholds `weights`.

    Membranes are those before each step; with `even` a tie at weight 1 goes to the even count.
    """
    level, given = level.double(), torch.zeros_like(level, dtype=torch.float64)
    membranes, spikes = [], []
    for w in weights:
        membranes.append(level)
        fires = level >= w
        if even and w == 1:
            fires = fires & ((level != w) | (given % 2 == 1))
        level, given = level - w * fires, given + w * fires
        spikes.append(fires)
    if not weights:
        return level.new_empty(0, *level.shape), level.new_empty(0, *level.shape, dtype=torch.int8)
    return torch.stack(membranes), torch.stack(spikes).to(torch.int8)


def initial_membrane(u: Tensor, first: float) -> tuple[Tensor, bool]:
    """``(level, even)``: where the membrane starts (float64) and whether ties go to even."""
    return u.double() + (1.0 - first), first == 0.5


def unsigned(level: Tensor, coder: str, instead: str) -> Tensor:
    """Membranes that an unsigned code can bring to rest; a count below zero is refused."""
    if bool((level < 0).any()):
        refuse_negative(level.floor().to(torch.int64), coder, instead)
    return level


def valued(train: Tensor, weights: Tensor, scale: float, x: SpikeTensor | Tensor, coder: str) -> SpikeTensor:
    """A train of which one spike stands for `scale`, with values of the type of `x` (whole numbers: the default)."""
    kind = x.dtype if x.dtype.is_floating_point else torch.get_default_dtype()
    wide = kind if kind in (torch.float32, torch.float64) else torch.float32
    spikes = SpikeTensor.from_train(train, weights, torch.tensor(scale, dtype=wide, device=train.device), coder)
    return spikes if kind == wide else spikes.to(kind)


def finite_values(x: SpikeTensor | Tensor, coder: str) -> Tensor:
    """The values in float64, all finite."""
    if not isinstance(x, SpikeTensor | Tensor):
        raise ArgumentError(f"{coder} codes a tensor of values, got {type(x).__name__}")
    values = (x.value() if isinstance(x, SpikeTensor) else x).detach()
    if values.is_complex():
        raise ArgumentError(f"{coder} codes real values, got {values.dtype}")
    values = values.to(torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise FastSNNError(f"{coder} codes finite values; got NaN or infinity")
    return values


def unit_values(x: SpikeTensor | Tensor, coder: str) -> Tensor:
    """The values in float64, all in [0, 1]."""
    values = finite_values(x, coder)
    if values.numel() and (float(values.min()) < 0 or float(values.max()) > 1):
        low, high = float(values.min()), float(values.max())
        raise FastSNNError(f"{coder} codes values in [0, 1]; got {low:g} … {high:g}. Scale them first")
    return values


__getattr__ = renamed(__name__, {"fit": "check_steps_fit", "start": "initial_membrane"})
