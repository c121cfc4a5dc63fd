"""Integer neuron with a budget: a threshold per token from its largest magnitude, counts of at most S binary digits."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Neuron, SpikeTensor, hookimpl, param
from fastsnn_core.lowering import SpikeRule
from fastsnn_core.site import keeping_float32
from fastsnn_events.coder_helpers import initial_membrane, integrate
from fastsnn_modules.inputs import neuron_input
from fastsnn_modules.shown import constants

__version__ = "0.1.0"


@frozen
class AdaptiveMax(Neuron):
    """V = clamp(clip · max_D |x| / (2^S - 1), 1e-5, 1e4);  c = round(x / V) within ±(2^S - 1);  value c·V.

    V is taken per token in float32 and detached; c is rounded half to even and signed, and fits S spike steps of a
    bitwise code by construction. With `burst` = b the maximum leaves out the b largest |x| of a token: at most b
    channels exceed 2^S - 1 then, none of them is clamped, and their counts take the wide path. x [B,T,D] ->
    SpikeTensor [B,T,D] with scale V [B,T,1]; no state. Gradient: identity (straight-through); with `learn_clip` it
    reaches clip through V as in LSQ (Esser et al. 2020, arXiv 1902.08153): ∂(cV)/∂clip = (c - x/V) ∂V/∂clip, without
    the x/V where a count is clamped.
    """

    name = "adaptive_max"
    steps: int = param(4, ge=1, le=15, unit="spike steps", doc="S, binary digits of a count", draw=(1, 3, 5))
    burst: int = param(0, ge=0, le=65536, unit="channels", doc="how many per token may need more steps", draw=(0, 1))
    clip: float = param(1.0, gt=0.0, le=4.0, doc="share of the maximum that the steps reach up to", draw=(1.0, 0.7))
    learn_clip: bool = param(False, doc="train clip, one number per site")

    def build(self, features: int) -> nn.Module:
        """The module for `features` channels."""
        return AdaptiveMaxModule(self, features)


class Held(torch.autograd.Function):
    """round(held), with the gradient of u: straight-through, also where a count is clamped."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, held: Tensor) -> Tensor:
        """Counts."""
        return held.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Of u."""
        return grad, None


class AdaptiveMaxModule(nn.Module):
    """``(x, None, reset) -> (SpikeTensor, None)``; its constants steps, burst and clip are stored with the weights."""

    steps: Tensor
    burst: Tensor
    clip: Tensor
    batch_invariant = True  # a maximum does not depend on the order it is taken in

    def __init__(self, spec: AdaptiveMax, features: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(spec.steps, dtype=torch.int32))
        self.register_buffer("burst", torch.tensor(min(spec.burst, features - 1), dtype=torch.int32))
        clip = torch.tensor(float(spec.clip))
        if spec.learn_clip:
            self.clip = nn.Parameter(clip)
        else:
            self.register_buffer("clip", clip)

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptiveMaxModule:
        """Constants stay float32 when they would be half precision."""
        keeping_float32(self, lambda: super(AdaptiveMaxModule, self)._apply(fn, recurse))
        return self

    def extra_repr(self) -> str:
        """Its constants."""
        return constants(self, "steps", "burst")

    @property
    def most(self) -> int:
        """2^S - 1."""
        return (1 << int(self.steps)) - 1

    @property
    def bound(self) -> float:
        """Largest count; nothing bounds the channels that burst."""
        return float("inf") if int(self.burst) else float(self.most)

    def reach(self, x: Tensor) -> Tensor:
        """The largest magnitude that the steps are for ``[B,T,1]``: the maximum, or the (burst + 1)-th largest."""
        size, burst = x.abs(), int(self.burst)
        return size.topk(burst + 1, dim=-1).values[..., -1:] if burst else size.amax(-1, keepdim=True)

    def threshold(self, x: Tensor) -> Tensor:
        """V ``[…, 1]`` of ``x […, D]``, with the gradient of both; `forward` detaches x."""
        clip = self.clip if self.clip.requires_grad else self.clip.detach()
        return (self.reach(x) * clip.to(x.dtype).clamp_min(1e-3) / self.most).clamp(1e-5, 1e4)

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[SpikeTensor, None]:
        """Counts of `x`."""
        x = neuron_input("adaptive_max", x, state, reset, stateful=False)
        v = self.threshold(x.detach())
        most, burst = float(self.most), int(self.burst)
        u = x / v.detach()
        high = u.detach().clamp(-most, most)
        if burst:
            high = torch.where(self.regular(x), high, u.detach())
        if v.requires_grad:
            inside = u.detach() == high
            u = u + torch.where(inside, x.detach() / v - u.detach(), 0.0)
        counts = high.round() if not u.requires_grad else Held.apply(u, high)
        return SpikeTensor(counts, v), None

    def lower(self) -> SpikeRule:
        """The rule of V and c, with this site's constants."""
        most = float(self.most)
        return SpikeRule("max_abs", gain=max(float(self.clip), 1e-3), divisor=most, bound=most, burst=int(self.burst))

    def regular(self, x: Tensor) -> Tensor:
        """Which channels ``[B,T,D]`` may not burst."""
        return x.abs() <= self.reach(x)

    @torch.no_grad()
    def drive(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, float]:
        """Potentials ``[B,T,D]`` in thresholds as they are counted, and the level of the first spike (they round)."""
        u, most = x / self.threshold(x), float(self.most)
        held = u.clamp(-most, most)
        return (torch.where(self.regular(x), held, u) if int(self.burst) else held), 0.5

    @torch.no_grad()
    def replay(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Integrate-and-fire over `steps`: membranes and ternary spikes ``[S,B,T,D]``, summing to the clipped count."""
        u, first = self.drive(x)
        level, even = initial_membrane(u.abs(), first)
        membranes, spikes = integrate(level, [1] * steps, even)
        return membranes.to(x.dtype) * self.threshold(x), spikes * x.sign()


@hookimpl
def fastsnn_neurons() -> list[type[Neuron]]:
    """This plugin's neurons."""
    return [AdaptiveMax]
