"""Fast-sigmoid surrogate gradient: that of SuperSpike."""

from __future__ import annotations

import torch
from attrs import frozen

from fastsnn_core import Surrogate, hookimpl, param

__version__ = "0.1.0"


@frozen
class FastSigmoid(Surrogate):
    """d count / d u = 1 / (1 + slope · d(u))², d the distance to [first threshold, last threshold], u in thresholds.

    The derivative of u / (1 + slope |u|). SuperSpike (Zenke & Ganguli 2018, arXiv 1705.11146) at its slope;
    ``fast_sigmoid(slope=25)`` of snnTorch, ``SuperSpike(alpha=100)`` of Norse.
    """

    name = "fast_sigmoid"
    slope: float = param(25.0, gt=0.0, le=1e4, unit="1/thresholds", doc="steepness", draw=(1.0, 5.0, 25.0))

    def derivative(self, u: torch.Tensor, first: float, last: float) -> torch.Tensor:
        """The peak of height 1 and its slow tails."""
        distance = (first - u).clamp_min(0) + (u - last).clamp_min(0)
        return 1 / (1 + self.slope * distance) ** 2


@hookimpl
def fastsnn_surrogates() -> list[type[Surrogate]]:
    """This plugin's surrogates."""
    return [FastSigmoid]
