"""Ternary coder: a signed count is that many spikes of its sign, one per step."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Coder, SpikeTensor, hookimpl
from fastsnn_events.coder_helpers import check_steps_fit, extremes, initial_membrane, integrate, whole_counts

__version__ = "0.1.0"


@frozen
class Ternary(Coder):
    """s_t = sign(c) 1[t < |c|] for t = 0 … S-1, every slot weighs 1; S >= max |c|.

    counts […] -> train [S, …] in {-1, 0, 1}. The ternary code of SpikingBrain's Int2Spike. Errors: |c| above S.
    """

    name = "ternary"

    def steps_for(self, largest: int) -> int:
        """One step per spike."""
        return max(1, largest)

    def encode(self, x: SpikeTensor | Tensor, steps: int | None = None) -> SpikeTensor:
        """Counts to a train."""
        counts, scale = whole_counts(x)
        low, high = extremes(counts)
        steps = check_steps_fit(counts, steps, self.steps_for(max(-low, high)), "ternary")
        slots = torch.arange(steps, device=counts.device).reshape(-1, *[1] * counts.ndim)
        train = (counts.abs() > slots).to(torch.int8) * counts.sign().to(torch.int8)
        return SpikeTensor.from_train(train, slots.new_ones(steps), scale, self.name)

    def replay(self, u: Tensor, steps: int, first: float = 0.5) -> tuple[Tensor, Tensor]:
        """As binary on |u|, the sign given back."""
        level, even = initial_membrane(u.abs(), first)
        membranes, train = integrate(level, [1] * steps, even)
        return membranes, train * u.sign().to(torch.int8)

    def decode(self, spikes: SpikeTensor) -> Tensor:
        """A train back to counts."""
        return spikes.counts


@hookimpl
def fastsnn_coders() -> list[type[Coder]]:
    """This plugin's coders."""
    return [Ternary]
