"""A spike site: where a stream of numbers becomes spikes, in front of one or more projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.lowering import SiteForm, Unsupported, lower
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_core.state import belongs

HALF, FULL = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)


def keeping_float32(module: nn.Module, change: Callable[[], Any]) -> None:
    """Run a cast of `module` (its ``_apply``); what was float32 or float64 and would be half precision stays as it was.

    For constants that spikes are counted with: a threshold in 8 bits moves every spike near its edge.
    """
    held = [
        (owner, name, t.data)
        for owner in module.modules()
        for table in (owner._parameters, owner._buffers)
        for name, t in table.items()
        if t is not None and t.dtype in FULL
    ]
    change()
    for owner, name, old in held:
        new = getattr(owner, name)
        if new.dtype in HALF and isinstance(new, nn.Parameter):
            grad, new.grad = new.grad, None
            new.data = old.to(new.device)
            new.grad = None if grad is None else grad.to(old.dtype)
        elif new.dtype in HALF:
            owner._buffers[name] = old.to(new.device)


class SpikeSite(nn.Module):
    """``(x [B,T,D], state, reset) -> (SpikeTensor, state)``; without a neuron the numbers pass as they are.

    `blend` in [0, 1] mixes in the dense value while spikes are warmed up: ``(1 - blend) x + blend · spikes``; at 1
    (the default) only spikes pass. `coding` writes the counts as a spike train (`fastsnn_events.coding`); without it
    they leave as counts. A `centred` site first takes a constant off every channel (``x - centre``, trained or set from
    data): what a channel always carries needs no spikes, and the biases behind the site make up for it.
    """

    batch_invariant = True
    centre: Tensor | None
    neuron: Any  # a module, or None

    def __init__(self, neuron: nn.Module | None, features: int = 0, centred: bool = False) -> None:
        super().__init__()
        self.neuron, self.features = neuron, features
        self.register_parameter("centre", nn.Parameter(torch.zeros(features)) if centred else None)
        self.name = ""  # what the model's spec calls it
        self.blend = 1.0
        self.coding: nn.Module | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> SpikeSite:
        """Centre and neuron constants stay float32 when the model is cast to half precision."""
        keeping_float32(self, lambda: super(SpikeSite, self)._apply(fn, recurse))
        return self

    def extra_repr(self) -> str:
        """``128 channels``; says where the numbers pass as they are."""
        says = [self.name] * bool(self.name) + [f"{self.features} channels"] * bool(self.features)
        says += ["centred"] * (self.centre is not None) + [f"blend={self.blend:g}"] * (self.blend != 1.0)
        return ", ".join(says + ["no neuron: numbers pass as they are"] * (self.neuron is None))

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Any, Any]:
        """Spikes of `x`."""
        kind = x.dtype
        if self.centre is not None:
            x = x - self.centre
        if self.neuron is None:
            return x.to(kind), state
        belongs("a spike site", state, x.shape[0])
        before = state
        x = x.float() if kind in HALF else x  # counts and thresholds need more than 8 or 11 bits
        spikes, state = self.neuron(x, state, reset)
        if self.blend < 1.0:
            return torch.lerp(x, spikes.value().to(x.dtype), self.blend).to(kind), state
        if self.coding is not None:
            spikes = self.coding(spikes, self.neuron, x, before, reset)
        return spikes, state

    def lower(self) -> SiteForm:
        """Its centre and its neuron's rule."""
        if self.neuron is None:
            return SiteForm(centre=self.centre)
        if self.blend < 1.0:
            raise Unsupported(f"it blends spikes with numbers ({self.blend:g})")
        return SiteForm(lower(self.neuron, "neuron"), self.centre, self.neuron)


def sites(model: nn.Module) -> dict[str, SpikeSite]:
    """Spike sites of a model that carry a neuron, by module name."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, SpikeSite)}
    return {name: m for name, m in found.items() if m.neuron is not None}


def is_spikes(output: Any) -> bool:
    """Does a module's output start with a SpikeTensor?"""
    return isinstance(output, SpikeTensor) or (
        isinstance(output, tuple) and len(output) > 0 and isinstance(output[0], SpikeTensor)
    )
