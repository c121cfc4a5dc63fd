"""Leaky integrate-and-fire neuron with lateral inhibition: who spikes holds the others down."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_leaky.cells import Cell, Row, channels_shifted
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param

__version__ = "0.1.0"


@frozen
class LateralLif(Neuron):
    """u_t = β v_{t-1} + x_t - Σ_{j≠i} g_{|i-j|} s_{j,t-1};  s_t = 1[u_t >= θ];  v_t = u_t - s_t θ.

    β = 1 - 1/tau; g learnt, in units of θ. With ``reach = 0`` every other channel counts the same, g one number (soft
    winner-take-all; Diehl & Cook 2015, Front. Comput. Neurosci. 9:99); else the channels at a distance of 1 … reach
    count, g ``[reach]`` (channels are a line without ends joined). x [B,T,D] -> SpikeTensor [B,T,D] with counts in
    {0, 1} and scale θ; state (v, s), v in units of θ. Gradient: the surrogate, through the inhibition too, reset
    detached. For weights between all channels there is `recurrent_lif`.
    """

    name = "lateral_lif"
    tau: float = param(2.0, gt=1.0, le=1e4, unit="tokens", doc="membrane time constant")
    strength: float = param(0.2, ge=-10.0, le=10.0, unit="θ", doc="g at first; below 0 excites", draw=(0.0, 0.5))
    reach: int = param(0, ge=0, le=1000, unit="channels", doc="how far inhibition goes; 0: to all", draw=(0, 2))
    learn: bool = param(True, doc="train g")
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> LateralCell:
        """The module for `features` channels."""
        return LateralCell(self)


class LateralCell(Cell):
    """The module of a `LateralLif`."""

    g: Tensor
    who = "a LIF neuron with lateral inhibition"
    parts = ("v", "s")
    shown_as = ("beta", "reach")

    def __init__(self, how: LateralLif) -> None:
        super().__init__(how.threshold, how.surrogate, how.fixed)
        self.beta, self.reach = 1 - 1 / how.tau, how.reach
        g = torch.full((max(1, how.reach),), how.strength)
        if how.learn:
            self.g = nn.Parameter(g)
        else:
            self.register_buffer("g", g)

    def inhibition(self, s: Tensor) -> Tensor:
        """Σ_{j≠i} g_{|i-j|} s_j of ``s [B,D]``."""
        g = self.g.to(s.dtype)
        if not self.reach:
            return g * (s.sum(1, keepdim=True) - s)
        total = torch.zeros_like(s)
        for k in range(1, min(self.reach, s.shape[1] - 1) + 1):
            total = total + g[k - 1] * (channels_shifted(s, k) + channels_shifted(s, -k))
        return total

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token."""
        v, before = row
        u = self.beta * v + x - self.inhibition(before)
        s = self.spike(u)
        return u, s, (u - s.detach(), s)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [LateralLif]
