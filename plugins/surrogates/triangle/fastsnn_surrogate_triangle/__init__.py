"""Triangular surrogate gradient."""

from __future__ import annotations

import torch
from attrs import frozen

from fastsnn_core import Surrogate, hookimpl, param

__version__ = "0.1.0"


@frozen
class Triangle(Surrogate):
    """d count / d u = height · max(0, 1 - d(u) / width), d the distance to [first, last threshold], u in thresholds.

    Bellec et al. 2018 (arXiv 1803.09574), with height 0.3 and width 1; Esser et al. 2016 (arXiv 1603.08270) with 1.
    """

    name = "triangle"
    height: float = param(0.3, gt=0.0, le=10.0, doc="at the threshold", draw=(0.3, 1.0))
    width: float = param(1.0, gt=0.0, le=100.0, unit="thresholds", doc="where it ends", draw=(0.5, 1.0))

    def derivative(self, u: torch.Tensor, first: float, last: float) -> torch.Tensor:
        """The triangle."""
        distance = (first - u).clamp_min(0) + (u - last).clamp_min(0)
        return self.height * (1 - distance / self.width).clamp_min(0)


@hookimpl
def fastsnn_surrogates() -> list[type[Surrogate]]:
    """This plugin's surrogates."""
    return [Triangle]
