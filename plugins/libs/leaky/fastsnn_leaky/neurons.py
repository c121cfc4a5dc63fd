"""The module behind every leaky neuron: `lif_scan` with a threshold that data may set.

    u_t = β v_{t-1} + x_t        c_t = round(clip(u_t / θ, lo, hi))        v_t = u_t - c_t θ

θ is a neuron constant, one per module, stored with the weights. `calibrate_` sets it from data (``θ = threshold ·
mean|x|``); until then it is `threshold` itself. With ``learn`` it is a parameter and gets the LSQ gradient
``Σ g c - h x/θ`` (h what reaches x/θ), since counts are taken of that and multiplied by θ again. Shapes: x ``[B,T,D]``,
state v ``[B,D]`` (in units of θ), reset ``[B,T]``; the output is a SpikeTensor ``[B,T,D]`` with scale θ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core import ops
from fastsnn_core.component import Surrogate
from fastsnn_core.ops.surrogate_gradient import derivative, thresholds
from fastsnn_core.site import keeping_float32
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_leaky.scan import lif_scan
from fastsnn_modules.inputs import membrane_state, neuron_input
from fastsnn_modules.shown import constants


class _OwnInput(torch.autograd.Function):
    """The potential u, whose gradient is that of this token's input; the membrane before it is a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Leaky(nn.Module):
    """``(x, v, reset) -> (SpikeTensor, v)``; see the module's equation."""

    theta: Tensor
    dials = ("theta",)
    batch_invariant = True  # single operations per channel, token after token, in any case

    def __init__(
        self,
        *,
        beta: float,
        threshold: float,
        lo: float,
        hi: float,
        heaviside: bool = False,
        hard: bool = False,
        attached: bool = False,
        surrogate: Surrogate | None = None,
        default: tuple[str, float] = ("window", 0.5),
        learn: bool = False,
        fixed: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.fixed, self.gain = fixed, gain
        self.beta, self.threshold, self.lo, self.hi = beta, threshold, lo, hi
        self.heaviside, self.hard, self.attached = heaviside, hard, attached
        theta = torch.tensor(float(threshold))
        if learn:
            self.theta = nn.Parameter(theta)
        else:
            self.register_buffer("theta", theta)
        self.slope: Any = default if surrogate is None else surrogate.code() or surrogate.derivative

    def _apply(self, fn: Any, recurse: bool = True) -> Leaky:
        """θ stays float32 when it would be half precision."""
        keeping_float32(self, lambda: super(Leaky, self)._apply(fn, recurse))
        return self

    def extra_repr(self) -> str:
        """Its constants."""
        return constants(self, "beta", "theta", "lo", "hi", "heaviside", "hard")

    def calibrate_(self, x: Tensor) -> None:
        """Set θ from data: `threshold` times the mean magnitude of `x`; a `fixed` one stays."""
        if self.fixed:
            return
        with torch.no_grad():
            self.theta.copy_(self.threshold * x.detach().abs().mean().clamp_min(1e-8))

    def weighed(self, x: Tensor) -> Tensor:
        """What of the input reaches the membrane: `gain` times it."""
        return x if self.gain == 1.0 else self.gain * x

    def forward(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[SpikeTensor, Tensor]:
        """Counts of `x` and the membrane to carry on with."""
        x = self.weighed(neuron_input("a leaky neuron", x, state, reset))
        theta = self.theta.to(x.dtype)
        counts, v = lif_scan(
            x, state, reset, theta, beta=self.beta, lo=self.lo, hi=self.hi,
            heaviside=self.heaviside, hard=self.hard, attached=self.attached, surrogate=self.slope,
        )  # fmt: skip
        return SpikeTensor(counts, theta), v

    def within_step(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[SpikeTensor, Tensor]:
        """What `forward` gives, with the gradient of every token's own input alone: for rules that learn online."""
        u, theta = self.potential(x, state, reset), self.theta.to(x.dtype)
        if not u.shape[1]:
            return self(x, state, reset)

        def slope(u: Tensor) -> Tensor:
            first, last = thresholds(self.lo, self.hi, self.heaviside)
            if callable(self.slope):
                return self.slope(u, first, last)
            form, alpha = self.slope
            return derivative(u, form, alpha, first, last)

        counts = ops.count(
            _OwnInput.apply(self.weighed(x) / theta, u), self.lo, self.hi, heaviside=self.heaviside, slope=slope
        )
        last, c = u[:, -1], counts[:, -1].detach()
        return SpikeTensor(counts, theta), torch.where(c != 0, torch.zeros_like(last), last) if self.hard else last - c

    @torch.no_grad()
    def dial_(self, name: str, value: float) -> None:
        """Set one of `dials`: θ."""
        getattr(self, name).fill_(value)

    @torch.no_grad()
    def potential(self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None) -> Tensor:
        """u ``[B,T,D]`` before each count, in thresholds."""
        from fastsnn_leaky import scan

        x = self.weighed(neuron_input("a leaky neuron", x, state, reset))
        v = membrane_state("a leaky neuron", x, state)
        keep = x.new_empty(0, 0, dtype=torch.bool) if reset is None else ~reset
        return scan.MEMBRANE(
            x.device.type, x.contiguous(), v[:, None], keep, self.theta.detach().to(x.dtype),
            scan.LifRule(self.beta, self.lo, self.hi, self.heaviside, self.hard),
        )  # fmt: skip

    def membrane(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """u ``[B,T,D]`` before each count, in units of the input: for pictures."""
        return self.potential(x, state) * self.theta.detach().to(x.dtype)

    def drive(self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, float]:
        """Potentials ``[B,T,D]`` in thresholds as they are counted, and the level of the first spike."""
        return self.potential(x, state, reset).clamp(self.lo, self.hi), 1.0 if self.heaviside else 0.5
