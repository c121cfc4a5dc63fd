"""Rate coder: values in [0, 1] as the fraction of steps that spike, evenly spaced or drawn at random."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Coder, SpikeTensor, hookimpl, param
from fastsnn_events.coder_helpers import unit_values, valued

__version__ = "0.1.0"


@frozen
class Rate(Coder):
    """even: s_t = ⌊(t+1)·n/S⌋ - ⌊t·n/S⌋ with n = round(x S);  bernoulli: s_t = 1[r_t < x], r from `seed`.

    values […] in [0, 1] -> train [S, …] in {0, 1}, every slot weighs 1, scale 1/S: decoding is the mean over S, within
    1/(2S) when even. Errors: a value outside [0, 1] or not finite.
    """

    name = "rate"
    lossless = False
    signed = False
    steps: int = param(16, ge=1, le=4096, unit="steps", doc="S", draw=(1, 8, 16))
    how: str = param("even", choices=("even", "bernoulli"), doc="evenly spaced spikes, or independent draws")
    seed: int = param(0, ge=0, doc="of the draws")

    def steps_for(self, largest: int) -> int:
        """S, whatever the values."""
        return self.steps

    def tolerance(self, steps: int) -> float:
        """Largest decoding error when even; a draw may be off by anything."""
        return 0.5 / steps if self.how == "even" else 1.0

    def encode(self, x: SpikeTensor | Tensor, steps: int | None = None) -> SpikeTensor:
        """Values to a train."""
        values, steps = unit_values(x, "rate"), steps or self.steps
        slots = torch.arange(steps, device=values.device).reshape(-1, *[1] * values.ndim)
        if self.how == "even":
            level = (values * steps).round().to(torch.int64)
            train = (slots + 1) * level // steps - slots * level // steps
        else:
            generator = torch.Generator().manual_seed(self.seed)
            draws = torch.rand(steps, *values.shape, generator=generator, dtype=torch.float64).to(values.device)
            train = draws < values
        return valued(train.to(torch.int8), slots.new_ones(steps), 1 / steps, x, self.name)

    def decode(self, spikes: SpikeTensor) -> Tensor:
        """The fraction of steps that spiked."""
        return spikes.value()


@hookimpl
def fastsnn_coders() -> list[type[Coder]]:
    """This plugin's coders."""
    return [Rate]
