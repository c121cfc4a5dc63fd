"""Leaky integrate-and-fire neuron whose spikes arrive later, by a delay that each channel learns."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, Surrogate, hookimpl, param, slot
from fastsnn_leaky.cells import Cell, Row

__version__ = "0.1.0"


@frozen
class AxonalDelay(Neuron):
    """u_t = β v_{t-1} + x_t;  s_t = 1[u_t >= θ];  v_t = u_t - s_t θ;  what leaves channel i is s_{t - round(d_i)}.

    β = 1 - 1/tau; d learnt, one for each channel, drawn from 0 … `longest` tokens and kept there. x [B,T,D] ->
    SpikeTensor [B,T,D] with counts in {0, 1} and scale θ; state (v, u_{t} … u_{t-longest+1}), in units of θ. Gradient:
    the surrogate at u_{t-d}, reset detached; to d the central difference -(u_{t-d+1} - u_{t-d-1}) / 2 through the
    surrogate, straight through the rounding. SLAYER's axonal delays: Shrestha & Orchard 2018 (arXiv 1810.08646).
    """

    name = "axonal_delay"
    tau: float = param(2.0, gt=1.0, le=1e4, unit="tokens", doc="membrane time constant")
    longest: int = param(4, ge=1, le=64, unit="tokens", doc="the longest delay", draw=(1, 3))
    learn: bool = param(True, doc="train the delays")
    threshold: float = param(
        1.0, gt=0.0, le=1e4, unit="mean |x| once calibrated", doc="θ, the height of one spike", draw=(0.5, 1.0)
    )
    fixed: bool = param(False, doc="θ is `threshold` as it is given: data do not set it")
    surrogate: Surrogate | None = slot(Surrogate, doc="gradient of the spike; arctangent when left out")

    def build(self, features: int) -> DelayedCell:
        """The module for `features` channels."""
        return DelayedCell(self, features)


class DelayedCell(Cell):
    """The module of an `AxonalDelay`."""

    delay: Tensor
    who = "a neuron with axonal delays"
    shown_as = ("beta", "longest")

    def __init__(self, how: AxonalDelay, features: int) -> None:
        super().__init__(how.threshold, how.surrogate, how.fixed)
        self.beta, self.longest, self.features = 1 - 1 / how.tau, how.longest, features
        self.parts = ("v", *(f"u{k}" for k in range(how.longest)))
        delay = torch.rand(features) * how.longest
        if how.learn:
            self.delay = nn.Parameter(delay)
        else:
            self.register_buffer("delay", delay)

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token."""
        v, *before = row
        u = self.beta * v + x
        line = torch.stack([u, *before])  # u_t, u_{t-1} … [K+1,B,D]
        d = self.delay.clamp(0, self.longest).to(u.dtype)
        k = d.detach().round().long().expand(1, *u.shape)
        late = line.gather(0, k)[0]
        if torch.is_grad_enabled() and self.delay.requires_grad:
            ahead, behind = (line.gather(0, (k + n).clamp(0, self.longest))[0] for n in (-1, 1))
            late = late + (d - d.detach()) * ((behind - ahead) / 2).detach()
        return late, self.spike(late), (u - (u.detach() >= 1).to(u.dtype), u, *before[:-1])


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [AxonalDelay]
