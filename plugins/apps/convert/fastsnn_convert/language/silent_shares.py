"""While a model is healed its dead zones follow, so that every site stays as silent as it was.

    zone ← zone · exp(RATE · (wanted - share)),     share ← ¾ share + ¼ (silent inputs of this step)

`wanted` is the mean share of the first `FIRST` steps. Without it a model that may move its weights makes more of its
inputs loud: SmolLM2 with 51.5 % silent bytes had 50.2 % after 14 steps (benchmarks/NOTES.md), and a quality at other
silent bytes than asked for says little.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import nn

from fastsnn_core.site import sites

FIRST = 8
"""Steps whose shares are the wanted ones."""
RATE = 0.5
SILENCING = 0.5
"""Dead zones up to here, in thresholds, silence nothing that rounding does not; they stay."""


@attrs.define(eq=False)
class SilentShares:
    """The neurons with a dead zone of a model by site, and of each the wanted share and the present one."""

    neurons: dict[str, Any]
    steps: int = 0
    wanted: dict[str, float] = attrs.field(factory=dict)
    share: dict[str, float] = attrs.field(factory=dict)
    seen: dict[str, float] = attrs.field(factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> SilentShares:
        """Of a model; none where no site has a dead zone."""
        found = {name: site.neuron for name, site in sites(model).items()}
        return cls({name: n for name, n in found.items() if float(getattr(n, "dead_zone", 0.0)) > SILENCING})

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While the block of code runs, what a neuron passes on is looked at."""

        def hook(name: str) -> Any:
            def look(_m: nn.Module, _a: Any, out: Any) -> None:
                self.seen[name] = float((out[0].counts.detach() == 0).float().mean())

            return look

        handles = [neuron.register_forward_hook(hook(name)) for name, neuron in self.neurons.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def follow(self) -> None:
        """After a step: move the dead zones. A stage without spikes is none."""
        self.steps += bool(self.seen)
        for name, now in self.seen.items():
            if self.steps <= FIRST:
                self.wanted[name] = self.wanted.get(name, 0.0) + (now - self.wanted.get(name, 0.0)) / self.steps
                self.share[name] = self.wanted[name]
                continue
            self.share[name] += 0.25 * (now - self.share[name])
            self.neurons[name].dead_zone.mul_(math.exp(RATE * (self.wanted[name] - self.share[name])))

    def data(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"steps": self.steps, "wanted": self.wanted, "share": self.share}

    def put(self, data: dict[str, Any]) -> None:
        """Take it up again."""
        self.steps, self.wanted, self.share = data["steps"], dict(data["wanted"]), dict(data["share"])
