"""Bitwise coder: the binary digits of a count, one per step, signed (bidirectional) or unsigned."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Coder, SpikeTensor, hookimpl, param
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
class Bitwise(Coder):
    """s_t = sign(c) · bit_{S-1-t}(|c|), slot t weighs 2^{S-1-t} (most significant first; reversed with order "lsb").

    S >= bits(max |c|); unsigned, c >= 0. counts […] -> train [S, …] in {-1, 0, 1}. The (bidirectional) bitwise code of
    SpikingBrain's Int2Spike; its paper writes least significant first, its code most significant first. Errors: a count
    of more than S bits (256 needs 9), a negative count when unsigned.
    """

    name = "bitwise"
    # shadows the class flag: the direction is a parameter here
    signed: bool = param(True, doc="spikes carry the sign of the count (bidirectional)")  # type: ignore[misc]
    order: str = param("msb", choices=("msb", "lsb"), doc="which digit comes first")

    def steps_for(self, largest: int) -> int:
        """Binary digits of the largest count."""
        return max(1, largest.bit_length())

    def encode(self, x: SpikeTensor | Tensor, steps: int | None = None) -> SpikeTensor:
        """Counts to a train."""
        counts, scale = whole_counts(x)
        if not self.signed:
            refuse_negative(counts, "unsigned bitwise", "signed = true, or two's complement")
        low, high = extremes(counts)
        steps = check_steps_fit(counts, steps, self.steps_for(max(-low, high)), "bitwise")
        places = torch.arange(steps, device=counts.device)
        places = places.flip(0) if self.order == "msb" else places
        bits = (counts.abs() >> places.reshape(-1, *[1] * counts.ndim)) & 1
        return SpikeTensor.from_train((bits * counts.sign()).to(torch.int8), 1 << places, scale, self.name)

    def replay(self, u: Tensor, steps: int, first: float = 0.5) -> tuple[Tensor, Tensor]:
        """Thresholds 2^{S-1} … 1 on |u|; least significant first, the membrane is halved after every step instead."""
        level, even = initial_membrane(u.abs() if self.signed else u, first)
        if not self.signed:
            level = unsigned(level, "unsigned bitwise", "signed = true, or two's complement")
        if self.order == "msb":
            membranes, train = integrate(level, [1 << p for p in range(steps - 1, -1, -1)], even)
        else:
            membranes, train = halve(level, steps, even)
        return membranes, train * u.sign().to(torch.int8) if self.signed else train

    def decode(self, spikes: SpikeTensor) -> Tensor:
        """A train back to counts."""
        return spikes.counts


def halve(level: Tensor, steps: int, even: bool) -> tuple[Tensor, Tensor]:
    """Fires where the whole thresholds in the membrane are odd, gives one back, and halves what is left."""
    membranes, spikes = [], []
    for step in range(steps):
        membranes.append(level)
        fires = level.floor() % 2 == 1
        if even and step == 0:
            fires = fires & (level != level.floor())  # a tie goes to the even count
        spikes.append(fires)
        level = (level - fires.double()) / 2
    return torch.stack(membranes), torch.stack(spikes).to(torch.int8)


@hookimpl
def fastsnn_coders() -> list[type[Coder]]:
    """This plugin's coders."""
    return [Bitwise]
