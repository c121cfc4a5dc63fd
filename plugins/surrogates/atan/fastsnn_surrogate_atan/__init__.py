"""Arctangent surrogate gradient, for binary spikes and for counts."""

from __future__ import annotations

import torch
from attrs import frozen

from fastsnn_core import Surrogate, hookimpl, ops, param

__version__ = "0.1.0"


@frozen
class Atan(Surrogate):
    """d count / d u = (alpha / 2) / (1 + (pi alpha d(u) / 2)^2), d the distance to [first threshold, last threshold].

    For a binary spike it is SpikingJelly's ATan (Fang et al. 2021, arXiv 2007.05785); for counts it is flat over the
    counting range and falls off outside. u in thresholds, any shape.
    """

    name = "atan"
    alpha: float = param(2.0, gt=0.0, le=20.0, unit="1/thresholds", doc="steepness")

    def derivative(self, u: torch.Tensor, first: float, last: float) -> torch.Tensor:
        """The bell."""
        return ops.derivative(u, "atan", self.alpha, first, last)

    def code(self) -> tuple[str, float]:
        """The closed form fused into the kernels."""
        return "atan", self.alpha


@hookimpl
def fastsnn_surrogates() -> list[type[Surrogate]]:
    """This plugin's surrogates."""
    return [Atan]
