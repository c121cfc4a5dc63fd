"""Time to first spike: the earliest output neuron is the answer."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core import Objective, hookimpl, param

__version__ = "0.1.0"


@frozen
class FirstSpike(Objective):
    """τ_c = Σ_t Π_{s<=t} (1 - clip(o_sc, 0, 1));  L = -log softmax(-τ / scale)_y.

    For spikes o in {0, 1} τ_c is the number of steps before the first spike of neuron c, and T where it never fires;
    its gradient reaches every output before that spike through the surrogate, so that an earlier spike can be learnt.
    outputs ``[B,T,C]`` spike counts, targets y ``[B]`` -> loss ``[B]`` in nats. The temporal cross-entropy of
    ``ce_temporal_loss`` in snnTorch, and of Mostafa 2018 (arXiv 1606.08165).
    """

    name = "first_spike"
    counts = True
    scale: float = param(1.0, gt=0.0, le=1e3, unit="steps", doc="a lead of so many steps is worth one nat")

    def read(self, outputs: Tensor) -> Tensor:
        """-τ ``[B,C]``: the largest is the first."""
        silent = (1 - outputs.clamp(0.0, 1.0)).cumprod(1)
        return -silent.sum(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Nats of every sample."""
        return F.cross_entropy(self.read(StraightThroughClamp.apply(outputs)) / self.scale, targets, reduction="none")


class StraightThroughClamp(torch.autograd.Function):
    """Counts cut to [0, 1] whose gradient passes the cut, so that neither a silent nor a busy neuron is lost."""

    generate_vmap_rule = True

    @staticmethod
    def forward(counts: Tensor) -> Tensor:
        """At most one spike a step counts."""
        return counts.clamp(0.0, 1.0)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        """As it is."""
        return grad


@hookimpl
def fastsnn_objectives() -> list[type[Objective]]:
    """This plugin's objectives."""
    return [FirstSpike]
