"""Latency coder: values in [0, 1] as the time of a single spike, large values first."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Coder, SpikeTensor, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_events.coder_helpers import unit_values, valued

__version__ = "0.1.0"


@frozen
class Latency(Coder):
    """s_t = 1[t = round((1 - x)(S - 1))], slot t weighs S-1-t, scale 1/(S-1); x = 0 stays silent.

    values […] in [0, 1] -> train [S, …] in {0, 1} with at most one spike per channel; decoding is within 1/(2(S-1)).
    Time-to-first-spike coding (Thorpe 1990). Errors: a value outside [0, 1] or not finite.
    """

    name = "latency"
    lossless = False
    signed = False
    steps: int = param(16, ge=2, le=4096, unit="steps", doc="S", draw=(2, 8, 16))

    def steps_for(self, largest: int) -> int:
        """S, whatever the values."""
        return self.steps

    def tolerance(self, steps: int) -> float:
        """Largest decoding error."""
        return 0.5 / (steps - 1)

    def encode(self, x: SpikeTensor | Tensor, steps: int | None = None) -> SpikeTensor:
        """Values to a train."""
        values, steps = unit_values(x, "latency"), steps or self.steps
        if steps < 2:
            raise FastSNNError("latency needs at least 2 steps")
        slots = torch.arange(steps, device=values.device).reshape(-1, *[1] * values.ndim)
        level = (values * (steps - 1)).round().to(torch.int64)
        train = (slots == steps - 1 - level) & (level > 0)
        weights = torch.arange(steps - 1, -1, -1, device=values.device)
        return valued(train.to(torch.int8), weights, 1 / (steps - 1), x, self.name)

    def decode(self, spikes: SpikeTensor) -> Tensor:
        """The value the spike's slot stands for."""
        return spikes.value()


@hookimpl
def fastsnn_coders() -> list[type[Coder]]:
    """This plugin's coders."""
    return [Latency]
