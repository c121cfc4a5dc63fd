"""A spike site: where a stream of numbers becomes spikes, in front of one or more projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.lowering import SiteForm, Unsupported, lower
from fastsnn_core.spike_tensor import SpikeTensor


class SpikeSite(nn.Module):
    """``(x [B,T,D], state, reset) -> (SpikeTensor, state)``; without a neuron the numbers pass as they are.

    `blend` in [0, 1] mixes in the dense value while spikes are warmed up: ``(1 - blend) x + blend · spikes``; at 1
    (the default) only spikes pass. `coding` writes the counts as a spike train (`fastsnn_events.runtime`); without it
    they leave as counts. A `centred` site first takes a constant off every channel (``x - centre``, trained or set from
    data): what a channel always carries needs no spikes, and the biases behind the site make up for it.
    """

    exact = True
    centre: Tensor | None

    def __init__(self, neuron: nn.Module | None, features: int = 0, centred: bool = False) -> None:
        super().__init__()
        self.neuron, self.features = neuron, features
        self.register_parameter("centre", nn.Parameter(torch.zeros(features)) if centred else None)
        self.blend = 1.0
        self.coding: nn.Module | None = None

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Any, Any]:
        """Spikes of `x`."""
        if self.centre is not None:
            x = x - self.centre
        if self.neuron is None:
            return x, state
        before = state
        spikes, state = self.neuron(x, state, reset)
        if self.blend < 1.0:
            return torch.lerp(x, spikes.value().to(x.dtype), self.blend), state
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
