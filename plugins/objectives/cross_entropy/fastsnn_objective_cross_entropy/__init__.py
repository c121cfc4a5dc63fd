"""Cross-entropy of a readout over the steps: its mean, last, largest or summed value."""

from __future__ import annotations

from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core import Objective, hookimpl, param

__version__ = "0.1.0"


@frozen
class CrossEntropy(Objective):
    """z = mean_t, last_t, max_t or Σ_t of o_t;  L = -log softmax(z)_y, mixed with the uniform law by `smoothing`.

    outputs o ``[B,T,C]`` (values or membranes of the readout), targets y ``[B]`` in 0 … C-1 -> loss ``[B]`` in nats.
    The mean is the rate readout of Fang et al. 2021 (arXiv 2007.05785); the largest membrane is that of Cramer et al.
    2020 (arXiv 1910.07407). ``readout = "step"`` is the mean of the cross-entropies of every step, not of the values:
    the temporal efficient training of Deng et al. 2022 (arXiv 2202.11946).
    """

    name = "cross_entropy"
    readout: str = param(
        "mean", choices=("mean", "last", "max", "sum", "step"), doc="how T outputs become one score for each class"
    )
    smoothing: float = param(0.0, ge=0.0, lt=1.0, doc="share of the uniform law in the target")

    def read(self, outputs: Tensor) -> Tensor:
        """z ``[B,C]``."""
        if self.readout == "last":
            return outputs[:, -1]
        if self.readout == "max":
            return outputs.amax(1)
        return outputs.sum(1) if self.readout == "sum" else outputs.mean(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Nats of every sample."""
        if self.readout != "step":
            return F.cross_entropy(self.read(outputs), targets, reduction="none", label_smoothing=self.smoothing)
        steps = targets[:, None].expand(-1, outputs.shape[1])
        rows = F.cross_entropy(outputs.flatten(0, 1), steps.flatten(), reduction="none", label_smoothing=self.smoothing)
        return rows.view(steps.shape).mean(1)


@hookimpl
def fastsnn_objectives() -> list[type[Objective]]:
    """This plugin's objectives."""
    return [CrossEntropy]
