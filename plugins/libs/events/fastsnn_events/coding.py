"""A site's counts as the train that its coder writes in its steps; or, replayed, the train that its membranes fire."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.component import Coder
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import SpikeTensor


@cache
def most(coder: Coder, steps: int) -> int:
    """Largest count magnitude that surely fits `steps` of a coder."""
    low, high = 0, 1
    while high < 2**31 and coder.steps_for(high) <= steps:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if coder.steps_for(middle) <= steps else (low, middle)
    return low


@attrs.define
class CodingStatistics:
    """What a site's coding saw since it was last cleared."""

    tokens: int = 0
    wide: int = 0
    extra_steps: int = 0
    largest: int = 0


class Coding(nn.Module):
    """``(spikes, neuron, x, state, reset) -> train``: writes one site's counts in its coder and steps."""

    steps: Tensor

    def __init__(self, label: str, coder: Coder, steps: int = 1, strict: bool = False) -> None:
        super().__init__()
        self.label, self.coder, self.strict, self.active = label, coder, strict, True
        self.register_buffer("steps", torch.tensor(steps, dtype=torch.int32))
        self.tally = CodingStatistics()
        self.recording: dict[str, Membranes] | None = None
        self.watched = False

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.coder.name}, steps={int(self.steps)}{'' if self.active else ', off'}"

    def forward(self, spikes: SpikeTensor, neuron: Any, x: Tensor, state: Any, reset: Tensor | None) -> SpikeTensor:
        """The train; or, while replaying, the one that the neuron's potential finds."""
        if not self.active:
            return spikes
        with torch.no_grad():
            try:
                if self.recording is not None:
                    return self.replay(spikes, neuron, x, state, reset)
                parts = [
                    self.coder.encode(SpikeTensor(torch.where(rows, counts, 0), spikes.scale), steps)
                    for rows, steps, counts in self.split(spikes)
                ]
                trains, weights = [p.train for p in parts], [p.weights for p in parts]
            except ValueError as error:
                raise FastSNNError(f"site {self.label or 'of the model'}: {error}") from None
        return SpikeTensor.from_train(torch.cat(trains), torch.cat(weights), spikes.scale, self.coder.name)

    def split(self, spikes: SpikeTensor) -> Iterator[tuple[Tensor, int, Tensor]]:
        """``(rows, steps, counts)``: the tokens that fit the regular steps, then the wide ones by what they need."""
        counts, steps = spikes.counts.detach(), int(self.steps)
        if not bool(torch.isfinite(counts).all()):
            raise FastSNNError("counts must be finite; got NaN or infinity")
        size = counts.abs().amax(-1, keepdim=True) if counts.shape[-1] else counts.new_zeros(*counts.shape[:-1], 1)
        largest = int(size.max()) if size.numel() else 0
        if largest >= 2**31:
            raise FastSNNError(f"count {largest} does not fit 32 bits; nothing was wrapped")
        self.tally.tokens += size.numel()
        self.tally.largest = max(self.tally.largest, largest)
        limit = most(self.coder, steps)
        yield size <= limit, steps, counts
        if largest <= limit:
            return
        need = self.coder.steps_for(largest)
        if self.strict:
            raise FastSNNError(f"count {largest} needs {need} {self.coder.name} steps, {steps} given")
        needs = {self.coder.steps_for(int(n)) for n in size[size > limit].unique()}
        for wider in sorted(needs):
            rows = (size <= most(self.coder, wider)) & (size > limit)
            limit = most(self.coder, wider)
            self.tally.wide += int(rows.sum())
            self.tally.extra_steps += int(rows.sum()) * wider
            yield rows, wider, counts

    def replay(self, spikes: SpikeTensor, neuron: Any, x: Tensor, state: Any, reset: Tensor | None) -> SpikeTensor:
        """Integrate and fire; wide tokens take their longer turn after the regular steps, as in `forward`."""
        assert self.recording is not None
        drive = getattr(neuron, "drive", None)
        if drive is None:
            raise FastSNNError(f"{type(neuron).__name__} offers no drive(x, state, reset), so it cannot be replayed")
        u, first = drive(x, state, reset)
        membranes, trains, weights = [], [], []
        for rows, steps, counts in self.split(spikes):
            level, train = self.coder.replay(torch.where(rows, u, 0.0), steps, first)
            membranes.append(level)
            trains.append(train)
            weights.append(self.coder.encode(torch.zeros_like(counts[..., :1]), steps).weights)
        out = SpikeTensor.from_train(torch.cat(trains), torch.cat(weights), spikes.scale, self.coder.name)
        if self.watched:
            self.recording[self.label] = Membranes(torch.cat(membranes), out, u)
        return out


@attrs.frozen(eq=False)
class Membranes:
    """One site: membranes ``[S, …]`` in thresholds before each step, the train that they fired, the potential ``u``."""

    membranes: Tensor
    spikes: SpikeTensor
    u: Tensor


@attrs.frozen(eq=False)
class Replay:
    """What the network gave, and the membranes of the watched sites by name."""

    output: Any
    sites: dict[str, Membranes]
