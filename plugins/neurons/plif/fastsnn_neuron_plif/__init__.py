"""Parametric leaky integrate-and-fire neuron (PLIF): the time constant is learnt."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_leaky.cells import Cell, Row
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param

__version__ = "0.1.0"


@frozen
class Plif(Neuron):
    """k = σ(w);  u_t = (1 - k) v_{t-1} + k x_t;  s_t = 1[u_t >= θ];  v_t = 0 where s_t = 1  (soft: u_t - s_t θ).

    1/k is the membrane time constant, tau at first; w is learnt, one for the layer or one for each channel. Without
    `decay_input` x_t comes in whole. x [B,T,D] -> SpikeTensor [B,T,D] with counts in {0, 1} and scale θ; state (v), in
    units of θ. Gradient: the surrogate, reset detached. Fang et al. 2021 (arXiv 2007.05785); as ``ParametricLIFNode``
    of SpikingJelly.
    """

    name = "plif"
    tau: float = param(2.0, gt=1.0, le=1e4, unit="tokens", doc="membrane time constant at first")
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    hard_reset: bool = param(True, doc="set the membrane to 0 after a spike instead of subtracting θ")
    decay_input: bool = param(True, doc="the input is weighed by k, so that a constant one is reached by the membrane")
    per_channel: bool = param(False, doc="a time constant for each channel, not one for the layer")
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> ParametricCell:
        """The module for `features` channels."""
        return ParametricCell(self, features)


class ParametricCell(Cell):
    """The module of a `Plif`."""

    who = "a parametric LIF neuron"
    shown_as = ("hard",)

    def __init__(self, how: Plif, features: int) -> None:
        super().__init__(how.threshold, how.surrogate, how.fixed)
        self.hard, self.decay_input = how.hard_reset, how.decay_input
        start = -math.log(how.tau - 1)  # σ(w) = 1 / tau
        self.w = nn.Parameter(torch.full((features if how.per_channel else 1,), start))

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token."""
        k = self.w.sigmoid().to(x.dtype)
        u = (1 - k) * row[0] + (k * x if self.decay_input else x)
        s = self.spike(u)
        fired = s.detach()
        return u, s, (u * (1 - fired) if self.hard else u - fired,)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [Plif]
