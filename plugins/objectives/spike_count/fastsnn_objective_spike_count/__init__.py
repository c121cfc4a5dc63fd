"""Losses on the number of spikes that each output neuron gave."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core import Objective, hookimpl, param
from fastsnn_core.errors import FastSNNError

__version__ = "0.1.0"


@frozen
class SpikeCount(Objective):
    """n_c = Σ_t s_tc.  ce: L = -log softmax(n)_y;  mse: L = mean_c (n_c / T - r_c)², r_y = `correct`, else `wrong`.

    outputs ``[B,T,C]`` spike counts of the last layer (its values where it ends in no spikes), targets y ``[B]`` ->
    loss ``[B]``: nats, or squared spikes per step. As ``ce_count_loss`` and ``mse_count_loss`` of snnTorch (one output
    neuron per class). `groups` neurons vote for each class where it is more than 1: C·groups outputs, class by class.
    """

    name = "spike_count"
    counts = True
    how: str = param("ce", choices=("ce", "mse"), doc="cross-entropy of the counts, or distance from target rates")
    correct: float = param(1.0, ge=0.0, le=1.0, unit="spikes per step", doc="target rate of the right class (mse)")
    wrong: float = param(0.0, ge=0.0, le=1.0, unit="spikes per step", doc="target rate of the others (mse)")
    groups: int = param(1, ge=1, unit="neurons", doc="that vote for each class", draw=(1,))

    def __attrs_post_init__(self) -> None:
        if self.correct <= self.wrong:
            raise FastSNNError(f"correct = {self.correct:g} must be above wrong = {self.wrong:g}")

    def read(self, outputs: Tensor) -> Tensor:
        """Counts ``[B,C]``."""
        counts = outputs.sum(1)
        if counts.shape[1] % self.groups:
            raise FastSNNError(f"{counts.shape[1]} outputs cannot vote in groups of {self.groups}")
        return counts.unflatten(1, (-1, self.groups)).sum(2)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One number for every sample."""
        counts = self.read(outputs)
        if self.how == "ce":
            return F.cross_entropy(counts, targets, reduction="none")
        wanted = torch.full_like(counts, self.wrong).scatter(1, targets[:, None], self.correct)
        return (counts / (outputs.shape[1] * self.groups) - wanted).square().mean(1)


@hookimpl
def fastsnn_objectives() -> list[type[Objective]]:
    """This plugin's objectives."""
    return [SpikeCount]
