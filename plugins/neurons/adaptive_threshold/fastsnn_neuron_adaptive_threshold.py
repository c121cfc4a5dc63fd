"""Adaptive-threshold integer neuron (sINT): counts relative to each token's mean magnitude."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, SpikeTensor, Surrogate, hookimpl, ops, param, slot

__version__ = "0.1.0"


@frozen
class AdaptiveThreshold(Neuron):
    """V = clamp(mean_D |x| / k, 1e-5, 1e4);  c = round(x / V);  value c·V.

    V is taken per token in float32 and detached; c is rounded half to even, signed and not clamped (outliers burst),
    unless `limit` bounds it. x [B,T,D] -> SpikeTensor [B,T,D] with scale V [B,T,1]; no state. Gradient: identity
    (straight-through). With `learn_k` the gradient reaches k through V as in LSQ: ∂(cV)/∂k = (c - x/V) ∂V/∂k.
    SpikingBrain report (arXiv 2509.05276) Eq. 19-21; k = 3 there.
    """

    name = "adaptive_threshold"
    k: float = param(3.0, gt=0.0, le=1e4, unit="spikes", doc="mean count per channel: larger is finer and denser")
    limit: int = param(
        0, ge=0, le=2**31 - 1, unit="spikes", doc="largest count; 0 leaves counts unbounded", draw=(0, 7)
    )
    learn_k: bool = param(False, doc="train k, one number per site")
    surrogate: Surrogate | None = slot(Surrogate, doc="gradient of the count; straight-through when left out")

    def build(self, features: int) -> nn.Module:
        """The module for `features` channels."""
        return AdaptiveThresholdModule(self)


class AdaptiveThresholdModule(nn.Module):
    """``(x, None, reset) -> (SpikeTensor, None)``; the constant k is stored with the weights."""

    k: Tensor
    exact = False

    def __init__(self, spec: AdaptiveThreshold) -> None:
        super().__init__()
        k = torch.tensor(float(spec.k))
        if spec.learn_k:
            self.k = nn.Parameter(k)
        else:
            self.register_buffer("k", k)
        self.bound = float(spec.limit) if spec.limit else float("inf")
        self.derivative = spec.surrogate.derivative if spec.surrogate else None

    def slope(self, u: Tensor) -> Tensor:
        """Stand-in derivative of the count."""
        if self.derivative is None:
            return torch.ones_like(u)
        edge = self.bound if self.bound != float("inf") else float(u.abs().max()) + 0.5
        return self.derivative(u, 0.5 - edge, edge - 0.5)

    def threshold(self, x: Tensor) -> Tensor:
        """V ``[B,T,1]``."""
        k = self.k if self.k.requires_grad else self.k.detach()
        x = x.detach()
        mean = ops.exact.row_sum(x, "abs") / x.shape[-1] if self.exact else x.abs().mean(-1, keepdim=True)
        return (mean / k.to(x.dtype)).clamp(1e-5, 1e4)

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[SpikeTensor, None]:
        """Counts of `x`."""
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        v = self.threshold(x)
        return SpikeTensor(ops.count(x / v, -self.bound, self.bound, slope=self.slope), v), None

    @torch.no_grad()
    def replay(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Integrate-and-fire over `steps`: membranes and ternary spikes ``[S,B,T,D]``, whose sum is the clipped count.

        v_0 = V/2 on |x|, one threshold is given back per step while it lasts, the sign is restored: with v_0 = 0 the
        sum would be floor(|x|/V). Ties (|x|/V exactly half) go up here and to even in the count.
        """
        v = self.threshold(x)
        level, membranes, spikes = x.abs() + v / 2, [], []
        for _ in range(steps):
            membranes.append(level.clone())
            fired = (level >= v).to(x.dtype)
            spikes.append(fired * x.sign())
            level = level - fired * v
        return torch.stack(membranes), torch.stack(spikes)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [AdaptiveThreshold]
