"""Recurrent leaky integrate-and-fire neuron: spikes come back through weights, one step later."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, Surrogate, hookimpl, param
from fastsnn_core.ops.dispatch import record_path
from fastsnn_leaky.cells import Cell, Row
from fastsnn_leaky.parameters import fixed_param, surrogate_slot, threshold_param
from fastsnn_leaky.recurrent_scan import recurrent_scan

__version__ = "0.1.0"


@frozen
class RecurrentLif(Neuron):
    """u_t = β v_{t-1} + x_t + R s_{t-1};  s_t = 1[u_t >= θ];  v_t = u_t - s_t θ  (hard reset: v_t = 0 where s_t = 1).

    β = 1 - 1/tau; R ``[D,D]`` learnt, drawn from ±scale/√D. x [B,T,D] -> SpikeTensor [B,T,D] with counts in {0, 1} and
    scale θ; state (v, s), v in units of θ. Gradient: the surrogate, reset detached. As ``RLeaky(all_to_all=True)`` of
    snnTorch but for the order of the reset; with ``convention = "snntorch"`` the spikes are its own: the reset comes a
    token later, after the decay, a spike is where u > θ (see `lif`), θ is fixed, and R has a bias. Cramer et al. 2020
    (arXiv 1910.07407).
    """

    name = "recurrent_lif"
    tau: float = param(2.0, gt=1.0, le=1e4, unit="tokens", doc="membrane time constant")
    threshold: float = threshold_param()
    fixed: bool = fixed_param()
    hard_reset: bool = param(False, doc="set the membrane to 0 after a spike instead of subtracting θ")
    scale: float = param(0.5, ge=0.0, le=10.0, doc="of the recurrent weights at first", draw=(0.0, 0.5))
    convention: str = param("fastsnn", choices=("fastsnn", "snntorch"), doc="whose neuron this is, spike for spike")
    surrogate: Surrogate | None = surrogate_slot()

    def build(self, features: int) -> RecurrentCell:
        """The module for `features` channels."""
        return RecurrentCell(self, features)


class RecurrentCell(Cell):
    """The module of a `RecurrentLif`."""

    who = "a recurrent LIF neuron"
    parts = ("v", "s")
    shown_as = ("beta",)
    batch_invariant = False  # a matrix product rounds otherwise in another batch

    def __init__(self, how: RecurrentLif, features: int) -> None:
        super().__init__(how.threshold, how.surrogate, how.fixed or how.convention == "snntorch")
        self.beta, self.hard, self.delayed = 1 - 1 / how.tau, how.hard_reset, how.convention == "snntorch"
        self.features = features
        self.recurrent = nn.Linear(features, features, bias=self.delayed)
        with torch.no_grad():
            self.recurrent.weight.uniform_(-1, 1).mul_(how.scale / features**0.5)

    def step(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor, Row]:
        """One token."""
        v, before = row
        came = self.recurrent(before) / self.theta.to(x.dtype)
        if self.delayed:
            fired = (v > 1).to(v.dtype).detach()
            u = self.beta * v + x + came
            u = u * (1 - fired) if self.hard else u - fired
            s = self.above(u)
            return u, s, (u, s)
        u = self.beta * v + x + came
        s = self.spike(u)
        fired = s.detach()
        return u, s, (u * (1 - fired) if self.hard else u - fired, s)

    def compiled(self, x: Tensor, row: Row, reset: Tensor | None) -> tuple[Tensor, Tensor, Row] | None:
        """By `recurrent_scan`, whose gradient is its own; None where the loop is to be taken."""
        layer: Any = self.recurrent
        hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or "forward" in vars(layer)
        mixed = any(z.dtype != x.dtype for z in (*row, layer.weight)) or torch.is_autocast_enabled(x.device.type)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            why = "torch's compiler or torch.func looks at the loop"
        elif self.delayed or hooked or type(layer) is not nn.Linear:
            why = "a delayed reset, or recurrent weights that are no plain layer"
        elif mixed or not x.numel():
            why = "not one type throughout, or empty"
        else:
            how = self.beta, self.hard, self.derivative
            found = recurrent_scan(x, (row[0], row[1]), reset, layer.weight, self.theta.to(x.dtype), how)
            if found is not None:
                record_path("cell_scan", "recurrent_scan")
                return found
            why = "a potential is NaN"
        record_path("cell_scan", "loop", why)
        return None

    def above(self, u: Tensor) -> Tensor:
        """1[u > 1], with the surrogate's gradient."""
        soft = self.spike(u)
        hard = torch.where(u > 1, 1.0, torch.where(u <= 1, 0.0, u)).detach().to(u.dtype)
        return hard + (soft - soft.detach()).nan_to_num(0.0)


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [RecurrentLif]
