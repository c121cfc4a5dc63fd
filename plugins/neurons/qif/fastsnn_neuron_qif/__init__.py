"""Quadratic integrate-and-fire neuron: near its threshold the membrane drives itself."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_leaky.cells import Cell, Row
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param

__version__ = "0.1.0"


@frozen
class Qif(Neuron):
    """u_t = v_{t-1} + (x_t + a v_{t-1} (v_{t-1} - v_c)) / tau;  s_t = 1[u_t >= θ];  v_t = 0 where s_t = 1.

    Rest is 0; between it and the critical level v_c the membrane sinks back, above it rises by itself until it spikes.
    a in 1/θ, v_c and the floor in θ: below ``-floor`` the membrane does not go. x [B,T,D] -> SpikeTensor [B,T,D] with
    counts in {0, 1} and scale θ; state (v), in units of θ. Gradient: the surrogate, reset detached. As ``QIFNode`` of
    SpikingJelly (which has no floor); Latham et al. 2000, Gerstner et al. 2014, chapter 5.3.
    """

    name = "qif"
    tau: float = param(2.0, ge=1.0, le=1e4, unit="tokens", doc="membrane time constant")
    a: float = param(1.0, ge=0.0, le=10.0, unit="1/θ", doc="how steep the parabola is", draw=(0.0, 1.0))
    critical: float = param(0.8, gt=0.0, lt=1.0, unit="θ", doc="v_c, above which the membrane rises by itself")
    floor: float = param(1.0, gt=0.0, le=100.0, unit="θ", doc="how far below rest the membrane may go", draw=(0.5, 2.0))
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> QuadraticCell:
        """The module for `features` channels."""
        return QuadraticCell(self)


class QuadraticCell(Cell):
    """The module of a `Qif`."""

    who = "a quadratic integrate-and-fire neuron"
    shown_as = ("tau", "a", "critical", "floor")

    def __init__(self, how: Qif) -> None:
        super().__init__(how.threshold, how.surrogate, how.fixed)
        self.tau, self.a, self.critical, self.floor = how.tau, how.a, how.critical, how.floor

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token."""
        (v,) = row
        u = (v + (x + self.a * v * (v - self.critical)) / self.tau).clamp_min(-self.floor)
        s = self.spike(u)
        return u, s, (torch.where(s.detach() > 0, torch.zeros_like(u), u),)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [Qif]
