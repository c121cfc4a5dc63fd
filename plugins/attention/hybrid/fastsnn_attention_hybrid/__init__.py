"""Hybrid attention: several attentions in parallel over the same heads, concatenated before the output projection."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Attention, Dims, Heads, hookimpl, slots
from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import MixerForm, lower
from fastsnn_modules.inputs import StateError

__version__ = "0.1.0"


@frozen
class Hybrid(Attention):
    """o_t = [branch_1(q, k, v)_t ‖ branch_2(q, k, v)_t ‖ …], then the layer's output projection.

    Every branch sees the same heads (rotated where it wants positions); heads q [B,T,H,K] -> o [B,T,H,n·K] for n
    branches, and the state is the tuple of theirs. SpikingBrain-76B's parallel linear and sliding-window attention
    (arXiv 2509.05276), concatenated instead of summed.
    """

    name = "hybrid"
    branches: tuple[Attention, ...] = slots(Attention, "linear", "sliding_window", doc="what runs side by side")

    def __attrs_post_init__(self) -> None:
        if not self.branches:
            raise FastSNNError("hybrid needs at least one branch")

    @property
    def expansion(self) -> int:
        """How many times wider than the heads the output is."""
        return sum(branch.expansion for branch in self.branches)

    @property
    def projections(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those that any branch reads."""
        return tuple(name for name in ("q", "k", "v") if any(name in branch.projections for branch in self.branches))

    def build(self, dims: Dims) -> HybridMixer:
        """The mixer over its branches."""
        return HybridMixer([branch.build(dims) for branch in self.branches])

    def build_with_sites(self, dims: Dims, site: Any) -> HybridMixer:
        """The same, for branches with spike sites of their own."""
        return HybridMixer([branch.build_with_sites(dims, site) for branch in self.branches])


class HybridMixer(nn.Module):
    """``(heads, states, reset) -> (o, states)``."""

    batch_invariant = False
    branches: Any

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def adopt(self, spec: Hybrid) -> None:
        """Every branch takes over what it can."""
        for mixer, branch in zip(self.branches, spec.branches):
            if hasattr(mixer, "adopt"):
                mixer.adopt(branch)

    def lower(self) -> tuple[MixerForm, ...]:
        """Those of its branches, side by side (also of hybrids among them)."""
        return tuple(form for i, branch in enumerate(self.branches) for form in lower(branch, f"branches.{i}"))

    def pack_state(self, state: tuple[Any, ...]) -> list[tuple[Tensor, Tensor]]:
        """The pairs of its branches, one after the other."""
        return [pair for branch, s in zip(self.branches, state, strict=True) for pair in branch.pack_state(s)]

    def unpack_state(self, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Any, ...]:
        """The inverse."""
        states, rest = [], list(pairs)
        for branch in self.branches:
            own = len(branch.lower())
            states.append(branch.unpack_state(rest[:own]))
            rest = rest[own:]
        return tuple(states)

    def forward(
        self, heads: Heads, state: tuple[Any, ...] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Mix the tokens of a (piece of a) stream."""
        if state is not None and (not isinstance(state, tuple) or len(state) != len(self.branches)):
            raise StateError(
                f"hybrid: a state is a tuple of {len(self.branches)}, one per branch; got {type(state).__name__}"
            )
        states = state or (None,) * len(self.branches)
        outs, news = zip(*(mix(heads, s, reset) for mix, s in zip(self.branches, states)))
        return torch.cat([o.to(outs[0].dtype) for o in outs], -1), tuple(news)


@hookimpl
def fastsnn_attentions() -> list[type[Attention]]:
    """This plugin's attentions."""
    return [Hybrid]
