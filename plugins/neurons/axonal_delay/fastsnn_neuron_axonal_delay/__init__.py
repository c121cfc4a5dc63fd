"""Leaky integrate-and-fire neuron whose spikes arrive later, by a delay that each channel learns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_leaky.cells import Cell, Row, compiled_steps
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param

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
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    surrogate: Surrogate | None = surrogate_slot()

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

    def membrane_step(self, x: Tensor, row: Row) -> tuple[Tensor, Row]:
        """u of one token, and the membrane after it, before any delay."""
        u = self.beta * row[0] + x
        return u, (u - (u.detach() >= 1).to(u.dtype),)

    def late(self, at: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """u a delay ago, of ``at(k)``: u of k tokens ago, ``k [D]`` in 0 … `longest`."""
        d = self.delay.clamp(0, self.longest).to(like.dtype)
        k = d.detach().round().long()
        late = at(k)
        if torch.is_grad_enabled() and self.delay.requires_grad:
            ahead, behind = (at((k + n).clamp(0, self.longest)) for n in (-1, 1))
            late = late + (d - d.detach()) * ((behind - ahead) / 2).detach()
        return late

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token."""
        v, *before = row
        u, (v,) = self.membrane_step(x, (v,))
        line = torch.stack([u, *before])  # u_t, u_{t-1} … [K+1,B,D]
        late = self.late(lambda k: line.gather(0, k.expand(1, *u.shape))[0], u)
        return late, self.spike(late), (v, u, *before[:-1])

    def compiled(self, x: Tensor, row: Row, reset: Tensor | None) -> tuple[Tensor, Tensor, Row] | None:
        """The membrane by the scan; delays and spikes of all tokens at once."""
        v, *before = row
        found = compiled_steps(self.membrane_step, x, (v,), reset)
        if found is None:
            return None
        (u,), (v,) = found
        steps, longest = x.shape[1], self.longest
        line = torch.cat([torch.stack(before[::-1], 1), u], 1)  # [B,K+T,D]: u_t stands at K + t
        now = torch.arange(steps, device=x.device)
        begun = torch.full_like(now, -longest).expand(x.shape[:2])  # the first token of the document of each, [B,T]
        if reset is not None:
            begun = torch.where(reset, now, begun).cummax(1).values

        def at(k: Tensor) -> Tensor:
            then = now[:, None] - k
            found = line.gather(1, (longest + then).expand(u.shape))
            return found if reset is None else torch.where(then >= begun[:, :, None], found, torch.zeros_like(found))

        late = self.late(at, u)
        held = [line[:, longest + steps - 1 - k] for k in range(longest)]
        if reset is not None:
            fresh = [(steps - 1 - k >= begun[:, -1])[:, None] for k in range(longest)]
            held = [torch.where(f, h, torch.zeros_like(h)) for f, h in zip(fresh, held)]
        return late, self.spike(late), (v, *held)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [AxonalDelay]
