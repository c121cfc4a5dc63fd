"""Exponential integrate-and-fire neuron: the upstroke of a spike is an exponential."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_leaky.cells import Cell, Row
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param

__version__ = "0.1.0"


@frozen
class Eif(Neuron):
    """u_t = v_{t-1} + (x_t - v_{t-1} + Δ exp((v_{t-1} - v_T) / Δ)) / tau;  s_t = 1[u_t >= θ];  v_t = 0 where s_t = 1.

    Rest is 0, v_T where the upstroke sets in and Δ how sharp it is, both in θ. x [B,T,D] -> SpikeTensor [B,T,D] with
    counts in {0, 1} and scale θ; state (v), in units of θ. Gradient: the surrogate, reset detached. As ``EIFNode`` of
    SpikingJelly; Fourcaud-Trocmé et al. 2003 (J. Neurosci. 23, 11628).
    """

    name = "eif"
    tau: float = param(2.0, ge=1.0, le=1e4, unit="tokens", doc="membrane time constant")
    upstroke: float = param(0.8, gt=0.0, lt=1.0, unit="θ", doc="v_T, where the exponential sets in")
    sharpness: float = param(0.2, ge=0.05, le=10.0, unit="θ", doc="Δ: smaller is sharper", draw=(0.1, 1.0))
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> ExponentialCell:
        """The module for `features` channels."""
        return ExponentialCell(self)


class ExponentialCell(Cell):
    """The module of an `Eif`."""

    who = "an exponential integrate-and-fire neuron"
    shown_as = ("tau", "upstroke", "sharpness")

    def __init__(self, how: Eif) -> None:
        super().__init__(how.threshold, how.surrogate, how.fixed)
        self.tau, self.upstroke, self.sharpness = how.tau, how.upstroke, how.sharpness

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token; v is below 1, so the exponential is bounded."""
        (v,) = row
        u = v + (x - v + self.sharpness * ((v - self.upstroke) / self.sharpness).exp()) / self.tau
        s = self.spike(u)
        return u, s, (torch.where(s.detach() > 0, torch.zeros_like(u), u),)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [Eif]
