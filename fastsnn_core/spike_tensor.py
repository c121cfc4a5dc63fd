"""SpikeTensor: integer spike counts times a scale, in three lossless views.

    value = counts · scale                      counts [..., D] whole numbers; scale broadcasts (a threshold)
    counts = Σ_s weight[s] · train[s]           dense view: train [S, ..., D] in {-1, 0, 1}, slot weights [S]
    counts.flat[index[e]] += weight[e]          event view: coordinates and signed weights of the non-zero slots

While training, counts are floats that carry a straight-through gradient; at rest they are int8, int16 or int32
(`pack`). A SpikeTensor answers ``__torch_function__``: with `fastsnn_events` ``F.linear(spikes, W)`` and convolutions
run on the counts and scale once; `fastsnn_core.spike_methods` has the table of all other operations. Nothing wraps: a
count that does not fit is an error that names both, and a change of type (``to``) changes what `value` gives, never the
counts.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate, default_collate_fn_map

from fastsnn_core.errors import ArgumentError, FastSNNError
from fastsnn_core.spike_methods import COPIES, add_tensor_methods, compact, densify, in_place, no_such_method, summary
from fastsnn_core.spike_views import Sparsity as Sparsity
from fastsnn_core.spike_views import Views


def _broadcasts(scale: torch.Size, shape: torch.Size) -> bool:
    """Does a scale of this shape broadcast to counts without making them larger?"""
    return len(scale) <= len(shape) and all(n in (1, m) for n, m in zip(reversed(scale), reversed(shape)))


_found: list[dict[Any, Callable[..., Any]]] = []  # not functools.cache, of which torch.compile warns


def functions() -> dict[Any, Callable[..., Any]]:
    """Torch functions that a library computes on the counts, not on the value (entry points ``fastsnn1.functions``)."""
    if not _found:
        points = importlib.metadata.entry_points(group="fastsnn1.functions")
        _found.append({function: ours for point in points for function, ours in point.load().items()})
    return _found[0]


class SpikeTensor(Views):
    """Spikes of shape `shape` in one of the forms ``count``, ``dense`` or ``event``; see the module's equations."""

    __slots__ = ("_counts", "_index", "_kind", "_shape", "_train", "_weights", "coder", "form", "scale")
    __hash__ = object.__hash__  # as `Tensor`: == is elementwise

    def __init__(self, counts: Tensor, scale: Tensor | float = 1.0) -> None:
        self.form, self.coder = "count", ""
        self._counts: Tensor | None = counts
        self._train: Tensor | None = None
        self._index: Tensor | None = None
        self._weights: Tensor | None = None
        self._kind: torch.dtype | None = None  # of the value, where it was asked for
        if not isinstance(counts, Tensor):
            raise ArgumentError(f"counts must be a tensor, got {type(counts).__name__}")
        self._shape = counts.shape
        self.scale = scale if isinstance(scale, Tensor) else torch.as_tensor(scale, device=counts.device)
        if self.scale.ndim and not _broadcasts(self.scale.shape, counts.shape):
            raise FastSNNError(
                f"a scale of shape {list(self.scale.shape)} does not broadcast to counts {list(counts.shape)}"
            )

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
        room = torch.Size(shape).numel()
        if index.is_floating_point() or index.dtype == torch.bool:
            raise ArgumentError(f"coordinates must be integers, got {index.dtype}")
        if len(index) and index.device.type != "meta":
            low, high = (int(n) for n in torch.aminmax(index))
            if low < 0 or high >= room:
                raise FastSNNError(
                    f"coordinate {low if low < 0 else high} is outside 0 … {room - 1} of shape {list(shape)}"
                )
        return cls._of_events(index, weights, torch.Size(shape), scale)

    @classmethod
    def _of_events(cls, index: Tensor, weights: Tensor, shape: torch.Size, scale: Tensor | float) -> SpikeTensor:
        spikes = cls(weights, torch.as_tensor(1.0))
        spikes.form, spikes._counts = "event", None
        spikes._index, spikes._weights, spikes._shape = index, weights, shape
        spikes.scale = scale if isinstance(scale, Tensor) else torch.as_tensor(scale, device=weights.device)
        return spikes

    def like(self, counts: Tensor, scale: Tensor) -> SpikeTensor:
        """Other counts, whose value has this one's type."""
        new = SpikeTensor(counts, scale)
        new._kind = self._kind
        return new

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

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
        return self._kind or self._natural

    @property
    def _natural(self) -> torch.dtype:
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

    nelement, ndimension = numel, dim

    def __len__(self) -> int:
        if not self._shape:
            raise ArgumentError("len() of spikes without dimensions")
        return self._shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.value())

    def __repr__(self) -> str:
        return summary(self)

    __str__ = __repr__

    def __format__(self, how: str) -> str:
        return format(self.value(), how) if how else repr(self)

    def _repr_html_(self) -> str | None:
        for point in importlib.metadata.entry_points(group="fastsnn1.show_spikes"):
            return point.load()(self)
        return None  # a notebook then shows `repr`

    def __copy__(self) -> SpikeTensor:
        return self._with(lambda t: t)

    def rearrange(self, change: Callable[[Tensor], Tensor]) -> SpikeTensor:
        """Spikes whose counts and scales are moved alike, as in ``s.rearrange(lambda t: t[:, -1:])``.

        `change` gets tensors of this shape and only moves or leaves out numbers; a train becomes counts.
        """
        scale = self.scale if self.scale.ndim == 0 else compact(change(self.scale.expand(self._shape)))
        return self.like(change(self.counts), scale)

    def _with(self, change: Callable[[Tensor], Tensor]) -> SpikeTensor:
        """The same spikes in the same form, with `change` applied to payload and scale (device, copy, detach)."""
        new = SpikeTensor(change(self._data), torch.as_tensor(1.0))
        new.form, new.coder, new._shape, new._kind = self.form, self.coder, self._shape, self._kind
        new.scale = change(self.scale)
        if self.form == "dense":
            new._train, new._counts = new._counts, None
            new._weights = None if self._weights is None else self._weights.to(new._data.device)
        elif self.form == "event":
            new._weights, new._counts = new._counts, None
            new._index = None if self._index is None else self._index.to(new._data.device)
        return new

    @staticmethod
    def _elsewhere(move: Callable[[], Any]) -> Any:
        try:
            return move()
        except (AssertionError, RuntimeError) as error:  # torch, of a device that is not there
            raise ArgumentError(f"spikes cannot go there: {str(error).splitlines()[0]}") from None

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As `Tensor.to`: another device, and another type of the value. Counts and scale keep theirs, so that nothing
        rounds or wraps; an integer type gives the value itself, as an ordinary tensor."""
        args = densify(args)
        wanted = self._elsewhere(lambda: torch.empty((), dtype=self.dtype, device=self.device).to(*args, **kwargs))
        if not wanted.is_floating_point():
            return self.value().to(*args, **kwargs)
        keys = {k: v for k, v in kwargs.items() if k in ("non_blocking", "copy")}
        new = self._with(lambda t: t.to(wanted.device, **keys))
        new._kind = None if wanted.dtype == self._natural else wanted.dtype
        return new

    @property
    def data(self) -> SpikeTensor:
        """As `detach`."""
        return self._with(torch.Tensor.detach)

    def type(self, dtype: Any = None, **kwargs: Any) -> Any:
        """As `Tensor.type`."""
        if dtype is None:
            return self.value().type()
        return self.to(dtype) if isinstance(dtype, torch.dtype) else self.value().type(dtype, **kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What `functions` names runs on counts; the rest does as the methods do (`spike_methods`)."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not args and isinstance(kwargs.get("input"), SpikeTensor):
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        if isinstance(kwargs.get("out"), SpikeTensor):
            raise no_such_method(f"{name}(out=)")
        if args and isinstance(args[0], SpikeTensor):
            if (on_counts := functions().get(func)) is not None:
                return on_counts(*args, **kwargs)
            if in_place(name):
                raise no_such_method(name)
            if name in COPIES or func is torch.Tensor.to:
                return getattr(args[0], name)(*args[1:], **kwargs)
        return func(*densify(args), **densify(kwargs))


default_collate_fn_map[SpikeTensor] = lambda batch, **_: functions().get(default_collate, torch.stack)(batch)
add_tensor_methods(SpikeTensor)
