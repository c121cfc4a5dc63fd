"""Windowed straight-through surrogate gradient: 1 near the counting range, 0 outside."""

from __future__ import annotations

import torch
from attrs import frozen

from fastsnn_core import Surrogate, hookimpl, ops, param

__version__ = "0.1.0"


@frozen
class Window(Surrogate):
    """d count / d u = 1[d(u) <= width], d the distance to the interval [first threshold, last threshold].

    width = 0.5 gives exactly ``lo <= u <= hi`` for rounded counts: the gradient of I-LIF (SpikeYOLO, ECCV 2024) and of
    SpikeLM; for a binary spike it is the box ``|u - 1| <= 0.5``. u in thresholds, any shape.
    """

    name = "window"
    width: float = param(
        0.5, gt=0.0, le=8.0, unit="thresholds", doc="how far outside the range gradients still pass", draw=(0.5, 1.0)
    )

    def derivative(self, u: torch.Tensor, first: float, last: float) -> torch.Tensor:
        """The box."""
        return ops.derivative(u, "window", self.width, first, last)

    def code(self) -> tuple[str, float]:
        """The closed form fused into the kernels."""
        return "window", self.width


@hookimpl
def fastsnn_surrogates() -> list[type[Surrogate]]:
    """This plugin's surrogates."""
    return [Window]
