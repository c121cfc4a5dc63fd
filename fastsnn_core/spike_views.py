"""The three views of spikes, how one becomes another, and what is measured of them.

    counts = Σ_s weight[s] · train[s]           dense view
    counts.flat[index[e]] += weight[e]          event view
    value  = counts · scale

Every conversion is lossless; a count that does not fit is an error that names it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import attrs
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError

if TYPE_CHECKING:
    from fastsnn_core.component import Coder
    from fastsnn_core.spike_tensor import SpikeTensor

INTEGERS = (torch.int8, torch.int16, torch.int32)


@attrs.frozen
class Sparsity:
    """Three different sparsities. ``slot_sparsity = 1 - spikes_per_channel / steps``."""

    silent_fraction: float
    spikes_per_channel: float
    slot_sparsity: float
    steps: int
    mean_count: float
    largest: int


class Views:
    """Views and measures of a `SpikeTensor`, which holds the payload."""

    __slots__ = ()
    if TYPE_CHECKING:
        form: str
        scale: Tensor
        like: Any
        _of_events: Any
        numel: Any
        _counts: Tensor | None
        _train: Tensor | None
        _index: Tensor | None
        _weights: Tensor | None
        _shape: torch.Size
        _kind: torch.dtype | None

        @property
        def dtype(self) -> torch.dtype: ...  # noqa: D102

    @property
    def steps(self) -> int:
        """Spike steps S of the dense view; the bits of the largest count otherwise."""
        return len(self._train) if self._train is not None else max(1, self.largest().bit_length())

    @property
    def counts(self) -> Tensor:
        """Counts ``[…, D]``, whatever the view."""
        if self._counts is not None:
            return self._counts
        if self._train is not None and self._weights is not None:
            weights = self._weights.reshape(-1, *[1] * len(self._shape))
            kind = self._train.dtype if self._train.is_floating_point() else self._whole(self._weights)
            return (self._train.to(kind) * weights.to(kind)).sum(0).to(kind)
        assert self._index is not None
        assert self._weights is not None
        kind = self._weights.dtype if self._weights.is_floating_point() else self._whole(self._weights)
        flat = self._weights.new_zeros(self._shape.numel(), dtype=kind)
        return flat.index_add_(0, self._index, self._weights.to(kind)).reshape(self._shape)

    @staticmethod
    def _whole(weights: Tensor) -> torch.dtype:
        """The integer type that holds any sum of these weights."""
        if weights.device.type == "meta" or not weights.numel():
            return torch.int32
        most = float(weights.to(torch.float64).abs().sum())
        if most >= 2.0**63:
            raise FastSNNError(f"weights that add up to {most:.4g} do not fit the 64 bits of a count")
        return torch.int32 if most < 2.0**31 else torch.int64

    @property
    def train(self) -> Tensor:
        """Train ``[S, …, D]`` of the dense view."""
        if self._train is None:
            raise ValueError(f"a {self.form} SpikeTensor has no train; call .dense(coder) first")
        return self._train

    @property
    def weights(self) -> Tensor:
        """Slot weights ``[S]`` (dense) or event weights ``[E]`` (event)."""
        if self._weights is None:
            raise ValueError("a count SpikeTensor has no slot weights; call .dense(coder) or .event() first")
        return self._weights

    @property
    def index(self) -> Tensor:
        """Flat coordinates ``[E]`` of the event view."""
        if self._index is None:
            raise ValueError(f"a {self.form} SpikeTensor has no coordinates; call .event() first")
        return self._index

    def count(self) -> SpikeTensor:
        """The count view."""
        return cast("SpikeTensor", self) if self.form == "count" else self.like(self.counts, self.scale)

    def dense(self, coder: Coder | str, steps: int | None = None) -> SpikeTensor:
        """The dense view under a count coder (a component or its name); an error where a count does not fit."""
        if isinstance(coder, str):
            from fastsnn_core.plugins import create

            return create("coder", coder).encode(self.count(), steps)
        return coder.encode(self.count(), steps)

    def event(self) -> SpikeTensor:
        """The event view: every non-zero slot of a train, or every non-zero count, with its signed weight."""
        if self.form == "event":
            return cast("SpikeTensor", self)
        if self._train is not None and self._weights is not None:
            flat = self._train.flatten(1) if self._train.ndim > 1 else self._train[:, None]
            slot, index = flat.nonzero(as_tuple=True)
            kind = self._whole(self._weights)
            weights = flat[slot, index].to(kind) * self._weights.to(kind)[slot]
            order = torch.argsort(index, stable=True)
            index, weights = index[order], weights[order]
        else:
            flat = self.counts.reshape(-1)
            index = flat.nonzero(as_tuple=True)[0]
            weights = flat[index]
            if weights.is_floating_point() and not torch.equal(weights, weights.round()):
                raise FastSNNError("counts are not whole numbers; round them before taking events")
            low, high = self.extremes()
            if -low >= 2**63 or high >= 2**63:
                raise FastSNNError(f"count {low if -low > high else high} does not fit 64 bits")
            weights = weights.to(torch.int32 if max(-low, high) < 2**31 else torch.int64)
        new = self._of_events(index, weights, self._shape, self.scale)
        new._kind = self._kind
        return new

    def value(self) -> Tensor:
        """``counts · scale`` as an ordinary tensor."""
        counts, scale = self.counts, self.scale
        if not counts.is_floating_point():
            wide = scale.dtype if scale.dtype in (torch.float32, torch.float64) else torch.float32
            out = (counts.to(wide) * scale).to(self.dtype)
        else:
            out = counts * scale
        return out if self._kind is None else out.to(self._kind)

    def pack(self) -> SpikeTensor:
        """Counts in the smallest integer type that holds them; refuses fractions, and counts beyond 32 bits."""
        counts, (low, high) = self.counts.detach(), self.extremes()
        if counts.is_floating_point() and not torch.equal(counts, counts.round()):
            raise FastSNNError("counts are not whole numbers; round them before packing")
        for kind in INTEGERS:  # -128 goes to 16 bits, so that |c| has room too
            if max(-low, high) <= torch.iinfo(kind).max or (kind == torch.int32 and low == -(2**31) and high < 2**31):
                return self.like(counts.to(kind), self.scale.detach())
        raise FastSNNError(f"count {low if -low > high else high} does not fit 32 bits")

    def extremes(self) -> tuple[int, int]:
        """Smallest and largest count; 0, 0 where there is none."""
        if not self.numel():
            return 0, 0
        low, high = (n.item() for n in torch.aminmax(self.counts.detach()))
        if not math.isfinite(low) or not math.isfinite(high):
            raise FastSNNError("counts must be finite; got NaN or infinity")
        return int(low), int(high)

    def largest(self) -> int:
        """Largest count magnitude."""
        low, high = self.extremes()
        return max(-low, high)

    def sparsity(self, steps: int | None = None) -> Sparsity:
        """Silent fraction, spikes per channel, slot sparsity: of the train, or else of the bits of |count|."""
        counts = self.counts.detach()
        total = max(1, counts.numel())
        largest = self.largest()
        if self._train is not None:
            spikes, steps = float(self._train.detach().abs().sum(dtype=torch.float64)), len(self._train)
        else:
            steps = steps or max(1, largest.bit_length())
            if largest >= 2**63:
                raise FastSNNError(f"count {largest} does not fit 64 bits")
            left, spikes = counts.to(torch.int64).abs(), 0.0
            for _ in range(largest.bit_length()):
                spikes += float((left & 1).sum())
                left = left >> 1
        return Sparsity(
            silent_fraction=float((counts == 0).sum()) / total,
            spikes_per_channel=spikes / total,
            slot_sparsity=1.0 - spikes / total / steps,
            steps=steps,
            mean_count=float(counts.to(torch.float64).abs().sum()) / total,
            largest=largest,
        )
