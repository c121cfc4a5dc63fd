"""ReLUfication while a model is healed: SiLU gates become ReLU gates, and an L1 term makes them shut more often.

    act_t = (1 - t) silu + t relu,    t = 3 · progress, up to 1
    loss  = KL + l1 · sin(½ π t) · mean over blocks of E|h| / E|h_teacher|

with h the hidden channels that the down projection reads. Shut ReLU gates are exactly 0, so those channels are silent
without a dead zone. Mirzadeh et al. 2023 (arXiv 2310.04564); L1 that rises in a sine as in ProSparse (Song et al. 2024,
arXiv 2402.13516), whose shifted threshold at the end is what `fastsnn tune --loss` sets for each site. Such models are
trained on billions of tokens; a few minutes of healing are for models of a few million parameters.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import attrs
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError

BLEND = 1 / 3
"""Share of the budget over which the activation changes."""


@attrs.define(eq=False)
class ActivationChange:
    """The feed-forward layers of a student, what their activation becomes, and how far it has come (`t`)."""

    model: Any
    name: str
    l1: float
    t: float = 0.0

    @classmethod
    def of(cls, model: Any, name: str, l1: float) -> ActivationChange:
        """Of a decoder, or an error that says why its activation cannot be changed."""
        choices = getattr(type(model.layers[0].feedforward), "activations", ())
        if name not in choices:
            kind = model.spec.feedforward.name
            what = f"they can be {', '.join(choices)}" if choices else "theirs cannot be changed"
            raise ConversionError(f"feedforward {kind!r} has no activation {name!r}; {what}")
        attrs.evolve(model.spec.feedforward, activation=name)  # its own errors come before the work
        return cls(model, name, l1)

    def at(self, progress: float) -> None:
        """Blend the activations as far as `progress` of the budget, 0 … 1, wants it."""
        self.t = min(1.0, progress / BLEND)
        for layer in self.model.layers:
            layer.feedforward.toward = (self.name, self.t)

    def finish(self) -> None:
        """The activation is the new one, in the spec, too."""
        for layer in self.model.layers:
            layer.feedforward.become(self.name)
            layer.feedforward.toward = None
        spec = self.model.spec
        self.model.spec = attrs.evolve(spec, feedforward=attrs.evolve(spec.feedforward, activation=self.name))

    def abandon(self) -> None:
        """Back to the activation that was."""
        for layer in self.model.layers:
            layer.feedforward.toward = None

    def penalty(self, mine: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """The L1 term from mean magnitudes of the hidden channels of all blocks, and the teacher's."""
        terms = [a / b.detach().clamp_min(1e-12) for a, b in zip(mine, theirs)]
        total: Any = sum(terms)
        return total * (self.l1 * math.sin(0.5 * math.pi * self.t) / max(1, len(terms)))


@contextlib.contextmanager
def magnitudes(model: Any) -> Iterator[list[Tensor]]:
    """While the block of code runs, E|h| of the hidden channels of every block, in order, with gradient.

    Where blocks are checkpointed the way back belongs to the block of code: they are computed again there, and must
    save what they saved before. What they append then comes behind the first ``len(model.layers)``.
    """
    found: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0].abs().mean())

    handles = [layer.feedforward.hidden.register_forward_pre_hook(hook) for layer in model.layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
