"""Leaky integrate-and-fire neuron with a refractory period: it rests after every spike."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_leaky.cells import Cell, Row
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param

__version__ = "0.1.0"


@frozen
class RefractoryLif(Neuron):
    """u_t = β v_{t-1} + x_t and s_t = 1[u_t >= θ] where r_{t-1} = 0, else u_t = s_t = 0;  v_t = 0 where s_t = 1.

    r_t = `period` where s_t = 1, else max(0, r_{t-1} - 1): for that many tokens after a spike input is lost and the
    membrane stays at rest. β = 1 - 1/tau; with ``period = 0`` it is `lif` with a hard reset. x [B,T,D] -> SpikeTensor
    [B,T,D] with counts in {0, 1} and scale θ; state (v, r), v in units of θ, r in tokens. Gradient: the surrogate
    outside of the period, reset detached. Absolute refractoriness: Gerstner & Kistler 2002, chapter 4.1.
    """

    name = "refractory_lif"
    tau: float = param(2.0, gt=1.0, le=1e4, unit="tokens", doc="membrane time constant")
    period: int = param(2, ge=0, le=1000, unit="tokens", doc="for which a neuron rests after a spike", draw=(0, 3))
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> RefractoryCell:
        """The module for `features` channels."""
        return RefractoryCell(self)


class RefractoryCell(Cell):
    """The module of a `RefractoryLif`."""

    who = "a LIF neuron with a refractory period"
    parts = ("v", "r")
    shown_as = ("beta", "period")

    def __init__(self, how: RefractoryLif) -> None:
        super().__init__(how.threshold, how.surrogate, how.fixed)
        self.beta, self.period = 1 - 1 / how.tau, how.period

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token."""
        v, r = row
        u = torch.where(r > 0, torch.zeros_like(v), self.beta * v + x)
        s = self.spike(u)
        fired = s.detach() > 0
        left = torch.where(fired, torch.full_like(r, float(self.period)), (r - 1).clamp_min(0.0))
        return u, s, (torch.where(fired, torch.zeros_like(u), u), left)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [RefractoryLif]
