"""Adaptive leaky integrate-and-fire neuron (ALIF): every spike lifts the threshold for a while."""

from __future__ import annotations

from attrs import frozen
from torch import Tensor

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_leaky.cells import Cell, Row
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param

__version__ = "0.1.0"


@frozen
class Alif(Neuron):
    """a_t = ρ a_{t-1} + s_{t-1};  u_t = β v_{t-1} + x_t;  s_t = 1[u_t >= θ (1 + lift · a_t)];  v_t = u_t - s_t θ.

    β = 1 - 1/tau, ρ = 1 - 1/tau_adaptation. x [B,T,D] -> SpikeTensor [B,T,D] with counts in {0, 1} and scale θ; state
    (v, a, s), v in units of θ. Gradient: the surrogate at u/θ - lift · a_t, through a too, reset detached. The neuron
    of LSNNs: Bellec et al. 2018 (arXiv 1803.09574).
    """

    name = "alif"
    tau: float = param(5.0, gt=1.0, le=1e4, unit="tokens", doc="membrane time constant")
    tau_adaptation: float = param(50.0, gt=1.0, le=1e5, unit="tokens", doc="time constant of the threshold")
    lift: float = param(0.2, ge=0.0, le=100.0, unit="thresholds", doc="by which a spike lifts the threshold")
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> AdaptiveCell:
        """The module for `features` channels."""
        return AdaptiveCell(self)


class AdaptiveCell(Cell):
    """The module of an `Alif`."""

    who = "an adaptive LIF neuron"
    parts = ("v", "a", "s")
    shown_as = ("beta", "rho", "lift")

    def __init__(self, how: Alif) -> None:
        super().__init__(how.threshold, how.surrogate, how.fixed)
        self.beta, self.rho, self.lift = 1 - 1 / how.tau, 1 - 1 / how.tau_adaptation, how.lift

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token."""
        v, a, before = row
        a = self.rho * a + before
        u = self.beta * v + x
        lifted = u - self.lift * a
        s = self.spike(lifted)
        return lifted, s, (u - s.detach(), a, s)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [Alif]
