"""Izhikevich's neuron: two equations, twenty kinds of firing."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_leaky.cells import Cell, Row
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param

__version__ = "0.1.0"

REST, PEAK, LOWEST = -65.0, 30.0, -100.0
"""mV: where the membrane starts, where a spike is cut, and below what it does not go."""


@frozen
class Izhikevich(Neuron):
    """v' = 0.04 v² + 5 v + 140 - w + I;  w' = a (b v - w);  where v >= 30 mV: a spike, v = c, w = w + d.

    v in mV, time in ms, a token is `dt`; Euler, v in two half steps, as published; I = current · x / θ. A membrane
    below -100 mV is set to it, where the fit says nothing. x [B,T,D] -> SpikeTensor [B,T,D] with counts in {0, 1} and
    scale θ; state (v, w), each from its start (-65 mV, b · -65 mV), v in 95 mV. Gradient: the surrogate, reset
    detached. The defaults spike regularly; (a, b, c, d) = (0.02, 0.2, -50, 2) chatters, (0.1, 0.2, -65, 2) is
    fast-spiking.
    Izhikevich 2003 (IEEE Trans. Neural Netw. 14, 1569).
    """

    name = "izhikevich"
    a: float = param(0.02, gt=0.0, le=1.0, unit="1/ms", doc="rate of the recovery w")
    b: float = param(0.2, ge=-1.0, le=1.0, unit="1", doc="how w follows v", draw=(0.1, 0.25))
    c: float = param(-65.0, ge=-80.0, le=0.0, unit="mV", doc="v after a spike")
    d: float = param(8.0, ge=-100.0, le=100.0, unit="mV/ms", doc="by which a spike lifts w", draw=(2.0, 8.0))
    current: float = param(15.0, ge=0.0, le=1e3, unit="mV/ms", doc="I of an input of one threshold", draw=(5.0, 30.0))
    dt: float = param(1.0, gt=0.0, le=2.0, unit="ms", doc="time of one token", draw=(0.5, 1.0))
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> IzhikevichCell:
        """The module for `features` channels."""
        return IzhikevichCell(self)


class IzhikevichCell(Cell):
    """The module of an `Izhikevich`."""

    who = "Izhikevich's neuron"
    parts = ("v", "w")
    shown_as = ("a", "b", "c", "d", "current", "dt")

    def __init__(self, how: Izhikevich) -> None:
        super().__init__(how.threshold, how.surrogate, how.fixed)
        self.a, self.b, self.c, self.d, self.current, self.dt = how.a, how.b, how.c, how.d, how.current, how.dt

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token: two half steps of v, one of w; the potential is 1 at 30 mV."""
        v, w = REST + (PEAK - REST) * row[0], self.b * REST + row[1]
        current = self.current * x
        for _ in range(2):
            v = (v + 0.5 * self.dt * (0.04 * v * v + 5 * v + 140 - w + current)).clamp(LOWEST, -LOWEST)
        w = w + self.dt * self.a * (self.b * v.clamp_max(PEAK) - w)
        u = (v - REST) / (PEAK - REST)
        s = self.spike(u)
        fired = s.detach() > 0
        v = torch.where(fired, torch.full_like(u, (self.c - REST) / (PEAK - REST)), u)
        return u, s, (v, torch.where(fired, w + self.d, w) - self.b * REST)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [Izhikevich]
