"""Van Rossum distance: spike trains, smoothed by an exponential, beside target trains."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Objective, hookimpl, param
from fastsnn_core.errors import FastSNNError

__version__ = "0.1.0"


@frozen
class VanRossum(Objective):
    """f_t = (1 - 1/tau) f_{t-1} + s_t, g of the target train z likewise;  L = 1/(tau C) Σ_tc (f_tc - g_tc)².

    Of a class, z is one spike every `period` steps of its neuron, beginning with the first, and silence of the others.
    outputs ``[B,T,C]`` spike counts of the last layer (its values where it ends in no spikes), targets y ``[B]``, or
    trains z ``[B,T,C]`` -> loss ``[B]``. `read` gives counts. van Rossum 2001 (Neural Comput. 13, 751).

    Errors (FastSNNError): trains of another shape than the outputs.
    """

    name = "van_rossum"
    counts = True
    tau: float = param(5.0, ge=1.0, le=1e4, unit="steps", doc="of the exponential; 1 compares step by step")
    period: int = param(2, ge=1, le=10000, unit="steps", doc="between target spikes of the right class")

    def read(self, outputs: Tensor) -> Tensor:
        """Counts ``[B,C]``."""
        return outputs.sum(1)

    def train(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """z ``[B,T,C]``."""
        if targets.ndim == 3:
            if targets.shape != outputs.shape:
                raise FastSNNError(
                    f"van_rossum: target trains {list(targets.shape)} beside outputs {list(outputs.shape)}"
                )
            return targets.to(outputs.dtype)
        wanted = torch.zeros_like(outputs)
        beats = wanted[:, :: self.period]
        beats.scatter_(2, targets[:, None, None].expand(-1, beats.shape[1], 1), 1.0)
        return wanted

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared distance of every sample, per neuron."""
        apart = outputs - self.train(outputs, targets)
        level, total = torch.zeros_like(apart[:, 0]), apart.new_zeros(len(apart))
        for t in range(apart.shape[1]):  # smoothing is linear: of the difference, not of both
            level = (1 - 1 / self.tau) * level + apart[:, t]
            total = total + level.square().sum(1)
        return total / (self.tau * apart.shape[2])


@hookimpl
def fastsnn_objectives() -> list[type[Objective]]:
    """This plugin's objectives."""
    return [VanRossum]
