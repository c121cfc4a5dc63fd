"""Mean squared error of a readout over the steps: regression."""

from __future__ import annotations

from attrs import frozen
from torch import Tensor

from fastsnn_core import Objective, hookimpl, param

__version__ = "0.1.0"


@frozen
class MeanSquared(Objective):
    """z = mean_t, last_t or Σ_t of o_t;  L = mean_c (z_c - y_c)².

    outputs o ``[B,T,C]``, targets y ``[B,C]`` -> loss ``[B]``, in squared units of the target.
    """

    name = "mean_squared"
    task = "regression"
    readout: str = param("mean", choices=("mean", "last", "sum"), doc="how T outputs become one value")

    def read(self, outputs: Tensor) -> Tensor:
        """z ``[B,C]``."""
        if self.readout == "last":
            return outputs[:, -1]
        return outputs.sum(1) if self.readout == "sum" else outputs.mean(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error of every sample."""
        return (self.read(outputs) - targets).square().mean(1)


@hookimpl
def fastsnn_objectives() -> list[type[Objective]]:
    """This plugin's objectives."""
    return [MeanSquared]
