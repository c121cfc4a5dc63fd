"""Binary (thermometer) coder: a count is that many unit spikes, one per step."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Coder, SpikeTensor, hookimpl
from fastsnn_events.coder_helpers import (
    check_steps_fit,
    extremes,
    initial_membrane,
    integrate,
    refuse_negative,
    unsigned,
    whole_counts,
)

__version__ = "0.1.0"


@frozen
class Binary(Coder):
    """s_t = 1[t < c] for t = 0 … S-1, every slot weighs 1; S >= max c, c >= 0.

    counts […] -> train [S, …] in {0, 1}. The binary code of SpikingBrain's Int2Spike and the expansion of I-LIF
    (SpikeYOLO). Errors: a negative count, a count above S.
    """

    name = "binary"
    signed = False

    def steps_for(self, largest: int) -> int:
        """One step per spike."""
        return max(1, largest)

    def encode(self, x: SpikeTensor | Tensor, steps: int | None = None) -> SpikeTensor:
        """Counts to a train."""
        counts, scale = whole_counts(x)
        refuse_negative(counts, "binary", "ternary or signed bitwise")
        steps = check_steps_fit(counts, steps, self.steps_for(extremes(counts)[1]), "binary")
        slots = torch.arange(steps, device=counts.device).reshape(-1, *[1] * counts.ndim)
        return SpikeTensor.from_train((counts > slots).to(torch.int8), slots.new_ones(steps), scale, self.name)

    def replay(self, u: Tensor, steps: int, first: float = 0.5) -> tuple[Tensor, Tensor]:
        """One spike per threshold reached, as long as they last."""
        level, even = initial_membrane(u, first)
        return integrate(unsigned(level, "binary", "ternary or signed bitwise"), [1] * steps, even)

    def decode(self, spikes: SpikeTensor) -> Tensor:
        """A train back to counts."""
        return spikes.counts


@hookimpl
def fastsnn_coders() -> list[type[Coder]]:
    """This plugin's coders."""
    return [Binary]
