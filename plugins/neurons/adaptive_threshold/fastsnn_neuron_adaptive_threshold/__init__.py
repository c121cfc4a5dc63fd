"""Adaptive-threshold integer neuron (sINT): counts relative to each token's mean magnitude."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, SpikeTensor, Surrogate, hookimpl, ops, param, slot
from fastsnn_core.lowering import SpikeRule, Unsupported
from fastsnn_core.site import keeping_float32
from fastsnn_events.coder_helpers import initial_membrane, integrate
from fastsnn_integer import deterministic
from fastsnn_modules.inputs import neuron_input
from fastsnn_modules.shown import constants

__version__ = "0.1.0"
V_MIN, V_MAX = 1e-5, 1e4


@frozen
class AdaptiveThreshold(Neuron):
    """V = clamp(mean_D |x| / k, v_min, 1e4);  c = round(x / V);  value c·V.

    V is taken per token in float32 and detached; c is rounded half to even, signed and not clamped (outliers burst),
    unless `limit` bounds it. Sparser on demand: c = 0 where |x/V| < dead_zone, and, with `top`, for all but the `top`
    largest |x| of a token (of equals, the first channels). With a larger `v_min` quiet tokens fall silent as a whole:
    dead_zone · v_min is then an absolute threshold. x [B,T,D] -> SpikeTensor [B,T,D] with scale V [B,T,1]; no
    state. Gradient: identity (straight-through), also where silenced. With `learn_k` the gradient reaches k through V
    as in LSQ: ∂(cV)/∂k = (c - x/V) ∂V/∂k.
    SpikingBrain report (arXiv 2509.05276) Eq. 19-21; k = 3 there.
    """

    name = "adaptive_threshold"
    k: float = param(
        3.0,
        gt=0.0,
        le=1e4,
        unit="spikes",
        doc="mean count per channel: larger is finer and denser",
        draw=(1.0, 3.0, 40.0),
    )
    limit: int = param(
        0, ge=0, le=2**31 - 1, unit="spikes", doc="largest count; 0 leaves counts unbounded", draw=(0, 7)
    )
    dead_zone: float = param(
        0.0, ge=0.0, le=1e4, unit="V", doc="what is smaller is silent; up to 0.5 changes nothing", draw=(0.0, 1.0)
    )
    top: int = param(0, ge=0, le=2**31 - 1, unit="channels", doc="most that may spike per token; 0: all", draw=(0, 3))
    v_min: float = param(1e-5, gt=0.0, le=1e4, doc="smallest V, in units of x", draw=(1e-5, 0.3))
    learn_k: bool = param(False, doc="train k, one number per site")
    surrogate: Surrogate | None = slot(Surrogate, doc="gradient of the count; straight-through when left out")

    def build(self, features: int) -> nn.Module:
        """The module for `features` channels."""
        return AdaptiveThresholdModule(self)


class StraightThroughRound(torch.autograd.Function):
    """round(x / V), with the gradient of x / V: the ordinary case in half the passes over memory."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, v: Tensor) -> Tensor:
        """Counts."""
        return (x / v).round_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """V is kept."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Of x; V is a constant."""
        (v,) = ctx.saved_tensors
        return grad / v, None


class AdaptiveThresholdModule(nn.Module):
    """``(x, None, reset) -> (SpikeTensor, None)``; k, dead_zone, top and v_min are stored with the weights.

    All but k exist only where the spec asks for them; `fastsnn tune` gives every site its own.
    """

    k: Tensor
    dead_zone: Tensor
    top: Tensor
    v_min: Tensor | None
    batch_invariant = False
    dials = ("dead_zone", "k", "top", "v_min")

    def __init__(self, spec: AdaptiveThreshold) -> None:
        super().__init__()
        k = torch.tensor(float(spec.k))
        if spec.learn_k:
            self.k = nn.Parameter(k)
        else:
            self.register_buffer("k", k)
        self.sparser = spec.dead_zone > 0 or spec.top > 0
        if self.sparser:
            self.silence(spec.dead_zone, spec.top)
        self.register_buffer("v_min", torch.tensor(float(spec.v_min)) if spec.v_min > V_MIN else None)
        self.bound = float(spec.limit) if spec.limit else float("inf")
        self.derivative = spec.surrogate.derivative if spec.surrogate else None

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptiveThresholdModule:
        """Constants stay float32 when they would be half precision."""
        keeping_float32(self, lambda: super(AdaptiveThresholdModule, self)._apply(fn, recurse))
        return self

    def extra_repr(self) -> str:
        """Its constants."""
        return constants(self, "k", "dead_zone", "top", "v_min")

    def slope(self, u: Tensor) -> Tensor:
        """Stand-in derivative of the count."""
        if self.derivative is None:
            return torch.ones_like(u)
        edge = self.bound if self.bound != float("inf") else float(u.abs().max()) + 0.5
        return self.derivative(u, 0.5 - edge, edge - 0.5)

    def threshold(self, x: Tensor) -> Tensor:
        """V ``[…, 1]`` of ``x […, D]``, with the gradient of both; `forward` detaches x."""
        k = self.k if self.k.requires_grad else self.k.detach()
        mean = deterministic.row_sum(x, "abs") / x.shape[-1] if self.batch_invariant else x.abs().mean(-1, keepdim=True)
        v = mean / k.to(x.dtype)
        if self.v_min is not None and torch.compiler.is_exporting():  # the graph reads it when it runs
            return v.clamp_max(V_MAX).maximum(self.v_min.to(v.dtype))
        return v.clamp(self.least, V_MAX)

    @property
    def least(self) -> float:
        """Smallest V."""
        return V_MIN if self.v_min is None else float(self.v_min)

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[SpikeTensor, None]:
        """Counts of `x`."""
        x = neuron_input("adaptive_threshold", x, state, reset, stateful=False)
        v = self.threshold(x.detach())
        if self.derivative is None and self.bound == float("inf") and not v.requires_grad:
            counts: Any = StraightThroughRound.apply(x, v) if x.requires_grad else (x / v).round_()
        else:
            counts = ops.count(x / v, -self.bound, self.bound, slope=self.slope)
        if self.sparser:
            counts = counts - (counts * self.silenced((x / v).detach())).detach()
        return SpikeTensor(counts, v), None

    def lower(self) -> SpikeRule:
        """The rule of V and c, with this site's constants."""
        if self.sparser and int(self.top):
            raise Unsupported(f"adaptive_threshold with top = {int(self.top)} has no fused form")
        dead_zone = float(self.dead_zone) if self.sparser else 0.0
        return SpikeRule("mean_abs", divisor=float(self.k), bound=self.bound, dead_zone=dead_zone, v_min=self.least)

    def silence(self, dead_zone: float, top: int) -> None:
        """Make dead_zone and top constants of this site."""
        self.sparser = True
        self.register_buffer("dead_zone", torch.tensor(float(dead_zone), device=self.k.device))
        self.register_buffer("top", torch.tensor(int(top), dtype=torch.int32, device=self.k.device))

    @torch.no_grad()
    def dial_(self, name: str, value: float) -> None:
        """Set one of `dials`; those that silence are added where this site had none (its spec must then have them)."""
        if name == "v_min":
            self.register_buffer("v_min", torch.tensor(max(V_MIN, float(value)), device=self.k.device))
            return
        if name != "k" and not self.sparser:
            self.silence(0.0, 0)
        getattr(self, name).fill_(round(value) if name == "top" else value)

    def silenced(self, u: Tensor) -> Tensor:
        """Which channels ``[B,T,D]`` the dead zone and `top` keep silent, of potentials `u` in thresholds."""
        size = u.abs()
        mute = size < self.dead_zone
        if torch.compiler.is_exporting():  # the graph reads `top` when it runs
            place = (self.top.long() - 1).clamp(0, u.shape[-1] - 1).expand(*u.shape[:-1], 1)
            last = size.sort(dim=-1, descending=True).values.gather(-1, place)
            equal, left = size == last, self.top - (size > last).sum(-1, keepdim=True)
            return mute | ((self.top > 0) & ((size < last) | (equal & (equal.cumsum(-1) > left))))
        top = int(self.top)
        if 0 < top < u.shape[-1]:
            order = size.argsort(dim=-1, descending=True, stable=True)
            mute = mute.scatter(-1, order[..., top:], True)
        return mute

    @torch.no_grad()
    def drive(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, float]:
        """Potentials ``[B,T,D]`` in thresholds as they are counted, and the level of the first spike (they round)."""
        u = (x / self.threshold(x)).clamp(-self.bound, self.bound)
        return (u.masked_fill(self.silenced(x / self.threshold(x)), 0.0) if self.sparser else u), 0.5

    @torch.no_grad()
    def replay(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Integrate-and-fire over `steps`: membranes and ternary spikes ``[S,B,T,D]``, whose sum is the clipped count.

        v_0 = V/2 on |x|, one threshold is given back per step while it lasts, the sign is restored: with v_0 = 0 the
        sum would be floor(|x|/V); a tie goes to the even count.
        """
        u, first = self.drive(x)
        level, even = initial_membrane(u.abs(), first)
        membranes, spikes = integrate(level, [1] * steps, even)
        return membranes.to(x.dtype) * self.threshold(x), spikes * x.sign()


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [AdaptiveThreshold]
