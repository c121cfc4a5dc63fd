"""Root-mean-square integer neuron: one file gives it counts, events, calibration, replay and fused decoding."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, SpikeTensor, hookimpl, ops, param
from fastsnn_core.lowering import SpikeRule
from fastsnn_integer import deterministic

__version__ = "0.1.0"


@frozen
class RmsThreshold(Neuron):
    """V = clamp(√(mean_D x²) / k, 1e-5, 1e4);  c = round(x / V) within ±limit;  value c·V.

    V is taken per token in float32 and detached; c is rounded half to even and signed. Outliers weigh more in a root
    mean square than in a mean, so rows with outliers fire less than with `adaptive_threshold` at equal k. x [B,T,D] ->
    SpikeTensor [B,T,D] with scale V [B,T,1]; no state. Gradient: identity (straight-through) where a count is not
    clipped.
    """

    name = "rms_threshold"
    k: float = param(3.0, gt=0.0, le=1e4, unit="spikes", doc="root mean square of the counts", draw=(1.0, 3.0, 40.0))
    limit: int = param(0, ge=0, le=2**31 - 1, unit="spikes", doc="largest count; 0: unbounded", draw=(0, 7))

    def build(self, features: int) -> nn.Module:
        """The module for `features` channels."""
        return RmsThresholdModule(self)


class RmsThresholdModule(nn.Module):
    """``(x [B,T,D], None, reset) -> (SpikeTensor [B,T,D], None)``; its constant k is stored with the weights."""

    k: Tensor
    batch_invariant = False  # set by integer arithmetic: sums in a fixed order
    dials = ("k",)

    def __init__(self, spec: RmsThreshold) -> None:
        super().__init__()
        self.register_buffer("k", torch.tensor(float(spec.k)))
        self.bound = float(spec.limit) if spec.limit else float("inf")

    def threshold(self, x: Tensor) -> Tensor:
        """V ``[…, 1]`` of ``x […, D]``, with gradient."""
        if self.batch_invariant:
            root = deterministic.root(deterministic.row_sum(x, "square") / x.shape[-1])
        else:
            root = x.square().mean(-1, keepdim=True).sqrt()
        return (root / self.k.to(x.dtype)).clamp(1e-5, 1e4)

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[SpikeTensor, None]:
        """Counts of `x`."""
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        v = self.threshold(x.detach())
        return SpikeTensor(ops.count(x / v, -self.bound, self.bound, slope=torch.ones_like), v), None

    def lower(self) -> SpikeRule:
        """The rule as plain data: kernels run it, and prompts, single tokens and servers go through them."""
        return SpikeRule("rms", divisor=float(self.k), bound=self.bound)

    @torch.no_grad()
    def drive(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, float]:
        """Potentials ``[B,T,D]`` in thresholds, and the level of the first spike (they round): the replay."""
        return (x / self.threshold(x)).clamp(-self.bound, self.bound), 0.5

    @torch.no_grad()
    def dial_(self, name: str, value: float) -> None:
        """Set k: `fastsnn tune` gives every site its own."""
        getattr(self, name).fill_(value)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [RmsThreshold]
