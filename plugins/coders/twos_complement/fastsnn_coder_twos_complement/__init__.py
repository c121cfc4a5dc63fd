"""Two's complement coder: signed counts as unsigned spikes, the top slot counting negative."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Coder, SpikeTensor, hookimpl
from fastsnn_events.coder_helpers import check_steps_fit, extremes, initial_membrane, integrate, whole_counts

__version__ = "0.1.0"


@frozen
class TwosComplement(Coder):
    """s_t = bit_{S-1-t}(c mod 2^S), slot 0 weighs -2^{S-1}, slot t > 0 weighs 2^{S-1-t}; -2^{S-1} <= c < 2^{S-1}.

    counts […] -> train [S, …] in {0, 1}. The two's complement code of SpikingBrain's Int2Spike; small negative counts
    fire nearly every slot. Errors: a count outside the range of S digits.
    """

    name = "twos_complement"

    def steps_for(self, largest: int) -> int:
        """The digits of the largest magnitude, and one for the sign."""
        return largest.bit_length() + 1

    def encode(self, x: SpikeTensor | Tensor, steps: int | None = None) -> SpikeTensor:
        """Counts to a train."""
        counts, scale = whole_counts(x)
        low, high = extremes(counts)
        needed = max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0) + 1
        steps = check_steps_fit(counts, steps, needed, "two's complement")
        places = torch.arange(steps - 1, -1, -1, device=counts.device)
        bits = (counts >> places.reshape(-1, *[1] * counts.ndim)) & 1
        weights = (1 << places).clone()
        weights[0] = -weights[0]
        return SpikeTensor.from_train(bits.to(torch.int8), weights, scale, self.name)

    def replay(self, u: Tensor, steps: int, first: float = 0.5) -> tuple[Tensor, Tensor]:
        """A negative membrane fires first and is lifted by 2^{S-1}; the rest are its binary digits."""
        level, even = initial_membrane(u, first)
        sign = (level < 0).to(torch.int8)
        lifted = level + sign * float(1 << (steps - 1))
        membranes, train = integrate(lifted, [1 << p for p in range(steps - 2, -1, -1)], even)
        return torch.cat([level[None], membranes]), torch.cat([sign[None], train])

    def decode(self, spikes: SpikeTensor) -> Tensor:
        """A train back to counts."""
        return spikes.counts


@hookimpl
def fastsnn_coders() -> list[type[Coder]]:
    """This plugin's coders."""
    return [TwosComplement]
