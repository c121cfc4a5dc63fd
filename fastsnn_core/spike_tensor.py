"""SpikeTensor: integer spike counts times a scale, in three lossless views.

    value = counts · scale                      counts [..., D] whole numbers; scale broadcasts (a threshold)
    counts = Σ_s weight[s] · train[s]           dense view: train [S, ..., D] in {-1, 0, 1}, slot weights [S]
    counts.flat[index[e]] += weight[e]          event view: coordinates and signed weights of the non-zero slots

While training, counts are floats that carry a straight-through gradient; at rest they are int8, int16 or int32
(`pack`). A SpikeTensor answers ``__torch_function__``: ``F.linear(spikes, W)`` runs on the counts and scales once,
anything else sees the value. Nothing wraps: a count that does not fit is an error that names both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError

if TYPE_CHECKING:
    from fastsnn_core.component import Coder

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


class SpikeTensor:
    """Spikes of shape `shape` in one of the forms ``count``, ``dense`` or ``event``; see the module's equations."""

    __slots__ = ("_counts", "_index", "_shape", "_train", "_weights", "coder", "form", "scale")

    def __init__(self, counts: Tensor, scale: Tensor | float = 1.0) -> None:
        self.form, self.coder = "count", ""
        self._counts: Tensor | None = counts
        self._train: Tensor | None = None
        self._index: Tensor | None = None
        self._weights: Tensor | None = None
        self._shape = counts.shape
        self.scale = scale if isinstance(scale, Tensor) else torch.as_tensor(scale, device=counts.device)

    @classmethod
    def from_train(cls, train: Tensor, weights: Tensor, scale: Tensor | float = 1.0, coder: str = "") -> SpikeTensor:
        """Dense view: `train` ``[S, …]`` and one integer weight per slot ``[S]``."""
        if weights.shape != train.shape[:1]:
            raise FastSNNError(f"{train.shape[0]} slots need as many weights, got shape {tuple(weights.shape)}")
        spikes = cls(train[0] if len(train) else train.new_zeros(train.shape[1:]), scale)
        spikes.form, spikes.coder, spikes._counts = "dense", coder, None
        spikes._train, spikes._weights = train, weights
        return spikes

    @classmethod
    def from_events(
        cls, index: Tensor, weights: Tensor, shape: torch.Size | tuple[int, ...], scale: Tensor | float = 1.0
    ) -> SpikeTensor:
        """Event view: flat coordinates ``[E]`` into `shape` and their signed integer weights ``[E]``."""
        if index.shape != weights.shape or index.ndim != 1:
            raise FastSNNError(
                f"coordinates {tuple(index.shape)} and weights {tuple(weights.shape)} must be one list each"
            )
        spikes = cls(weights, scale)
        spikes.form, spikes._counts = "event", None
        spikes._index, spikes._weights, spikes._shape = index, weights, torch.Size(shape)
        return spikes

    # -- what a tensor is asked for ------------------------------------------------------------------------------

    @property
    def _data(self) -> Tensor:
        found = self._counts if self._counts is not None else self._train if self._train is not None else self._weights
        assert found is not None
        return found

    shape = property(lambda self: self._shape, doc="Shape of the value (without spike steps).")
    ndim = property(lambda self: len(self._shape))
    device = property(lambda self: self._data.device)
    requires_grad = property(lambda self: self._data.requires_grad or self.scale.requires_grad)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the value."""
        return torch.result_type(self._data, self.scale) if self._data.is_floating_point() else self.scale.dtype

    def size(self, dim: int | None = None) -> Any:
        """As `Tensor.size`."""
        return self._shape if dim is None else self._shape[dim]

    def dim(self) -> int:
        """As `Tensor.dim`."""
        return len(self._shape)

    def numel(self) -> int:
        """Number of channels times everything before them."""
        return self._shape.numel()

    def __len__(self) -> int:
        return self._shape[0]

    def __repr__(self) -> str:
        steps = f", steps={self.steps}" if self.form == "dense" else ""
        payload = f"dtype={self._data.dtype}, scale={tuple(self.scale.shape)}"
        return f"SpikeTensor({self.form}, shape={tuple(self._shape)}{steps}, {payload})"

    def _with(self, change: Callable[[Tensor], Tensor]) -> SpikeTensor:
        """The same spikes with `change` applied to payload and scale (device, dtype, detach)."""
        new = SpikeTensor(change(self._data), change(self.scale))
        new.form, new.coder, new._shape = self.form, self.coder, self._shape
        if self.form == "dense":
            new._train, new._counts = new._counts, None
            new._weights = None if self._weights is None else self._weights.to(new._data.device)
        elif self.form == "event":
            new._weights, new._counts = new._counts, None
            new._index = None if self._index is None else self._index.to(new._data.device)
        return new

    def to(self, *args: Any, **kwargs: Any) -> SpikeTensor:
        """As `Tensor.to`; integer payloads keep their type, so only the device and the scale's type change."""

        def change(t: Tensor) -> Tensor:
            moved = t.to(*args, **kwargs)
            return moved if t.is_floating_point() else moved.to(t.dtype)

        return self._with(change)

    def detach(self) -> SpikeTensor:
        """Without gradient."""
        return self._with(lambda t: t.detach())

    # -- views ---------------------------------------------------------------------------------------------------

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
            exact = self._train if self._train.is_floating_point() else self._train.to(torch.int32)
            return (exact * weights.to(exact.dtype)).sum(0).to(exact.dtype)
        assert self._index is not None
        assert self._weights is not None
        flat = self._weights.new_zeros(self._shape.numel())
        return flat.index_add_(0, self._index, self._weights).reshape(self._shape)

    @property
    def train(self) -> Tensor:
        """Train ``[S, …, D]`` of the dense view."""
        if self._train is None:
            raise FastSNNError(f"a {self.form} SpikeTensor has no train; call .dense(coder) first")
        return self._train

    @property
    def weights(self) -> Tensor:
        """Slot weights ``[S]`` (dense) or event weights ``[E]`` (event)."""
        if self._weights is None:
            raise FastSNNError("a count SpikeTensor has no slot weights; call .dense(coder) or .event() first")
        return self._weights

    @property
    def index(self) -> Tensor:
        """Flat coordinates ``[E]`` of the event view."""
        if self._index is None:
            raise FastSNNError(f"a {self.form} SpikeTensor has no coordinates; call .event() first")
        return self._index

    def count(self) -> SpikeTensor:
        """The count view."""
        return self if self.form == "count" else SpikeTensor(self.counts, self.scale)

    def dense(self, coder: Coder | str, steps: int | None = None) -> SpikeTensor:
        """The dense view under a count coder (a component or its name); an error where a count does not fit."""
        if isinstance(coder, str):
            from fastsnn_core.plugins import create

            return create("coder", coder).encode(self.count(), steps)
        return coder.encode(self.count(), steps)

    def event(self) -> SpikeTensor:
        """The event view: every non-zero slot of a train, or every non-zero count, with its signed weight."""
        if self.form == "event":
            return self
        if self._train is not None and self._weights is not None:
            flat = self._train.flatten(1) if self._train.ndim > 1 else self._train[:, None]
            slot, index = flat.nonzero(as_tuple=True)
            weights = flat[slot, index].to(torch.int32) * self._weights.to(torch.int32)[slot]
            order = torch.argsort(index, stable=True)
            index, weights = index[order], weights[order]
        else:
            flat = self.counts.reshape(-1)
            index = flat.nonzero(as_tuple=True)[0]
            weights = flat[index].to(torch.int32)
        return SpikeTensor.from_events(index, weights, self._shape, self.scale)

    def value(self) -> Tensor:
        """``counts · scale`` as an ordinary tensor."""
        counts = self.counts
        return counts.to(self.scale.dtype) * self.scale if not counts.is_floating_point() else counts * self.scale

    def pack(self) -> SpikeTensor:
        """Counts in the smallest integer type that holds them; refuses fractions, and counts beyond 32 bits."""
        counts, largest = self.counts.detach(), self.largest()
        if counts.is_floating_point() and not torch.equal(counts, counts.round()):
            raise FastSNNError("counts are not whole numbers; round them before packing")
        for kind in INTEGERS:
            if largest <= torch.iinfo(kind).max:
                return SpikeTensor(counts.to(kind), self.scale.detach())
        raise FastSNNError(f"count {largest} does not fit 32 bits")

    # -- measures ------------------------------------------------------------------------------------------------

    def largest(self) -> int:
        """Largest count magnitude."""
        return int(self.counts.detach().abs().max().item()) if self.numel() else 0

    def sparsity(self, steps: int | None = None) -> Sparsity:
        """Silent fraction, spikes per channel, slot sparsity: of the train, or else of the bits of |count|."""
        counts = self.counts.detach()
        total = max(1, counts.numel())
        largest = self.largest()
        if self._train is not None:
            spikes, steps = float(self._train.detach().abs().sum(dtype=torch.float64)), len(self._train)
        else:
            steps = steps or max(1, largest.bit_length())
            left, spikes = counts.abs().to(torch.int64), 0.0
            for _ in range(largest.bit_length()):
                spikes += float((left & 1).sum())
                left = left >> 1
        return Sparsity(
            silent_fraction=float((counts == 0).sum()) / total,
            spikes_per_channel=spikes / total,
            slot_sparsity=1.0 - spikes / total / steps,
            steps=steps,
            mean_count=float(counts.abs().sum(dtype=torch.float64)) / total,
            largest=largest,
        )

    # -- torch's protocol ----------------------------------------------------------------------------------------

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """``F.linear`` and the convolutions take the spike path; every other function sees the value."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], SpikeTensor):
            from fastsnn_core.ops.conv import CONVOLUTIONS, spike_conv
            from fastsnn_core.ops.event import spike_linear

            if func is torch.nn.functional.linear:
                return spike_linear(*args, **kwargs)
            if func in CONVOLUTIONS:
                return spike_conv(func, *args, **kwargs)
        return func(*plain(args), **plain(kwargs))


def plain(tree: Any) -> Any:
    """The same arguments with every SpikeTensor replaced by its value."""
    if isinstance(tree, SpikeTensor):
        return tree.value()
    if isinstance(tree, tuple | list):
        return type(tree)(plain(t) for t in tree)
    if isinstance(tree, dict):
        return {k: plain(v) for k, v in tree.items()}
    return tree


def _operator(name: str) -> Callable[..., Any]:
    def method(self: SpikeTensor, *args: Any) -> Any:
        return getattr(self.value(), name)(*plain(args))

    method.__name__ = name
    return method


OPERATORS = "add radd sub rsub mul rmul truediv matmul neg getitem"
METHODS = "mean sum abs max min reshape view transpose permute flatten unsqueeze squeeze float double"
for _name in [*(f"__{word}__" for word in OPERATORS.split()), *METHODS.split()]:
    setattr(SpikeTensor, _name, _operator(_name))
