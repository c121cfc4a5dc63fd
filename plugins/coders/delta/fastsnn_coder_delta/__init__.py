"""Delta coder: a signal over tokens as signed spikes for each threshold it moved since the token before."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Coder, SpikeTensor, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_events.coder_helpers import finite_values, valued

__version__ = "0.1.0"


@frozen
class Delta(Coder):
    """q_t = round(x_t / θ);  c_t = q_t - q_{t-1} (q_{-1} = 0);  s as the ternary code of c over S steps.

    values [B, T, …] -> train [S, B, T, …] in {-1, 0, 1}, every slot weighs 1, scale θ; decoding sums over T and is
    within θ/2 at every token, without drift. Send-on-delta sampling (Miskowicz 2006). Errors: fewer than two
    dimensions, values that are not finite, a jump of more than S thresholds.
    """

    name = "delta"
    lossless = False
    over_time = True
    threshold: float = param(
        0.1, gt=0.0, le=1e6, unit="signal units", doc="θ, the step one spike stands for", draw=(0.05, 0.5)
    )

    def steps_for(self, largest: int) -> int:
        """One step per threshold crossed."""
        return max(1, largest)

    def tolerance(self, steps: int) -> float:
        """Largest decoding error."""
        return self.threshold / 2

    def encode(self, x: SpikeTensor | Tensor, steps: int | None = None) -> SpikeTensor:
        """Values to a train; the second dimension is time."""
        values = finite_values(x, "delta")
        if values.ndim < 2:
            raise FastSNNError(f"delta codes signals [B, T, …]; got shape {tuple(values.shape)}")
        level = (values / self.threshold).round().to(torch.int64)
        counts = torch.diff(level, dim=1, prepend=torch.zeros_like(level[:, :1]))
        needed = self.steps_for(int(counts.abs().max()) if counts.numel() else 0)
        if steps is not None and needed > steps:
            raise FastSNNError(f"a jump of {needed} thresholds needs {needed} delta steps, {steps} given")
        slots = torch.arange(steps or needed, device=counts.device).reshape(-1, *[1] * counts.ndim)
        train = (counts.abs() > slots) * counts.sign()
        return valued(train.to(torch.int8), slots.new_ones(len(slots)), self.threshold, x, self.name)

    def decode(self, spikes: SpikeTensor) -> Tensor:
        """The running sum of the spikes."""
        return (spikes.counts.cumsum(1) * spikes.scale).to(spikes.dtype)


@hookimpl
def fastsnn_coders() -> list[type[Coder]]:
    """This plugin's coders."""
    return [Delta]
