"""Time folded into the batch: a network written for ``[B, …]`` runs on ``[B, T, …]``, and its neurons keep time.

`run_time_folded` runs such a network: the network is applied to every t, as if T were part of the batch, and each
`TimeFoldedSite` inside it unfolds what it gets, so that its neuron sees ``[B, T, D]`` and carries its state over T.
State stays explicit: `run_time_folded` takes the sites' states by name and gives the new ones back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.component import Neuron
from fastsnn_core.errors import FastSNNError
from fastsnn_core.moved import renamed
from fastsnn_core.site import SpikeSite
from fastsnn_core.spike_tensor import SpikeTensor, densify
from fastsnn_core.state import tree_map
from fastsnn_modules.inputs import (
    StateError,
    belongs,
    check_input_device,
    check_reset_mask,
    check_state_kind,
    no_train,
    numeric,
)


@attrs.define(eq=False)
class TimeFoldedPass:
    """One forward pass: B, T, document starts ``[B,T]``, the sites' states before and after, by site label.

    `pooled` says that a layer has taken the mean over T: what follows has one row per stream. `timed` says that there
    is a T: the input had one, or a layer has begun one (`begin`).
    """

    batch: int
    time: int
    reset: Tensor | None
    old: Mapping[str, Any]
    new: dict[str, Any]  # no factory: torch.compile cannot follow the one that attrs writes
    pooled: bool = False
    timed: bool = True

    def begin(self, time: int) -> None:
        """Time begins here: what follows has `time` rows per stream; a reset is one of the first."""
        if self.timed:
            raise FastSNNError("time has begun already; a network has one layer that begins it")
        self.time, self.timed = time, True
        if self.reset is not None:
            self.reset = torch.cat([self.reset, self.reset.new_zeros(self.batch, time - 1)], 1)


_running: ContextVar[TimeFoldedPass | None] = ContextVar("fastsnn_time_folded_pass", default=None)


def running_pass() -> TimeFoldedPass | None:
    """The pass that is running, or None outside of one."""
    return _running.get()


def run_time_folded(
    body: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    ranks: tuple[int, ...],
    state: Mapping[str, Any] | None = None,
    reset: Tensor | None = None,
) -> tuple[Any, dict[str, Any]]:
    """``body(*inputs)`` with every input either of its rank (``[B, …]``) or with one dimension more (``[B, T, …]``).

    Returns the output (tensors, unfolded again where time came in) and the sites' states. A network inside a running
    one is simply a part of it.
    """
    if running_pass() is not None:
        return body(*inputs), {}
    inputs = tuple(numeric("the network", no_train("the network", x)) for x in inputs)
    extra = {x.ndim - rank for x, rank in zip(inputs, ranks, strict=True)}
    if extra not in ({0}, {1}):
        wanted = ", ".join(f"{rank} (or {rank + 1}, with time)" for rank in ranks)
        found = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise FastSNNError(f"inputs have shapes {found}; dimensions expected: {wanted}, all with time or none")
    timed = extra == {1}
    b, t = inputs[0].shape[0], inputs[0].shape[1] if timed else 1
    check_state_kind("the network", state, Mapping, "the mapping from sites to states that the last call gave")
    belongs("the network", state, b)
    check_reset_mask("the network", reset, b, t, inputs[0].device)
    stream = TimeFoldedPass(b, t, reset, state or {}, {}, timed=timed)
    token = _running.set(stream)
    try:
        out = body(*(x.reshape(b * t, *x.shape[2:]) if timed else x for x in inputs))
    finally:
        _running.reset(token)
    if state and state.keys() != stream.new.keys():
        raise StateError(
            f"the network: the state is of the sites {', '.join(map(str, state))}; its own sites with a state are "
            f"{', '.join(stream.new) or 'none'}"
        )
    out = densify(out)
    if stream.timed and not stream.pooled:
        out = tree_map(lambda y: y.reshape(b, stream.time, *y.shape[1:]), out)
    return out, stream.new


def cast_half(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs in half precision in the type of the network's weights: counts need float32. They lie on its device."""
    first = first_weight(network)
    for x in inputs:
        check_input_device("the network", first, x)
    halves = (torch.float16, torch.bfloat16)
    if not any(isinstance(x, Tensor) and x.dtype in halves for x in inputs):
        return inputs
    kind = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    return tuple(x.to(kind) if isinstance(x, Tensor) and x.dtype in halves else x for x in inputs)


def first_weight(network: nn.Module) -> Tensor | None:
    """The first of ``network.parameters()``, in a quarter of its time: a step of a small network is short."""
    for module in network.modules():
        for weight in module._parameters.values():
            if weight is not None:
                return weight
    return None


class TimeFoldedSite(SpikeSite):
    """Spikes inside a folded network: ``x [N, *places, *group] -> SpikeTensor`` of the same shape, N = B·T.

    The last `channels` dimensions are one group: the neuron sees them as its D channels, with one threshold per group
    where its threshold is adaptive (1 for ``[…, D]``, 3 for images ``[C, H, W]``). Dimensions between N and the group
    (tokens of a sequence, say) are streams of their own. Outside of `run_time_folded`, N is the batch and T is 1.
    """

    reads_spikes = True

    def __init__(self, neuron: nn.Module | None, channels: int = 1) -> None:
        super().__init__(neuron)
        if channels < 1:
            raise FastSNNError(f"a site spikes over at least one dimension, got {channels}")
        self.channels, self.label = channels, ""
        self.component: Any = None  # the Neuron that it was built from, where that is known
        self.features = 0

    @classmethod
    def of(cls, component: Neuron, features: int, channels: int = 1) -> TimeFoldedSite:
        """A site that remembers the component its neuron was built from, so that it can be written down again."""
        site = cls(component.build(features), channels)
        site.component, site.features = component, features
        return site

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"channels={self.channels}"

    def forward(self, x: Any, state: Any = None, reset: Tensor | None = None) -> Any:
        """Spikes of `x`; the state comes from and goes to the running `TimeFoldedPass`. Spikes pass as they are."""
        if self.neuron is None or isinstance(x, SpikeTensor):
            return x
        if x.ndim <= self.channels:
            raise FastSNNError(
                f"site {self.label!r} spikes over {self.channels} dimensions, got shape {tuple(x.shape)}"
            )
        stream = running_pass() or TimeFoldedPass(len(x), 1, None, {}, {})
        fold = TimeFold(x.shape, stream.batch, stream.time, self.channels)
        old, reset = stream.old.get(self.label), stream.reset
        if reset is not None and fold.places > 1:
            reset = reset.repeat_interleave(fold.places, 0)
        out, new = super().forward(fold.unfold(x), fold.flat(old), reset)
        if new is not None and running_pass() is not None:
            stream.new[self.label] = fold.per_stream(new)
        return fold.spikes(out) if isinstance(out, SpikeTensor) else fold.fold(out)


@attrs.frozen
class TimeFold:
    """Between ``[N, *places, *group]`` and ``[B·P, T, D]``, with N = B·T, P = places and D = channels in a group."""

    shape: torch.Size
    batch: int
    time: int
    channels: int

    @property
    def places(self) -> int:
        """P."""
        return math.prod(self.shape[1 : len(self.shape) - self.channels])

    @property
    def width(self) -> int:
        """D."""
        return math.prod(self.shape[len(self.shape) - self.channels :])

    def unfold(self, x: Tensor) -> Tensor:
        """To ``[B·P, T, D]``."""
        rows = x.reshape(self.batch, self.time, self.places, self.width)
        return rows.transpose(1, 2).reshape(self.batch * self.places, self.time, self.width)

    def fold(self, x: Tensor) -> Tensor:
        """Back; a last dimension of 1 (one threshold for the group) becomes ones in every dimension of the group."""
        rows = x.reshape(self.batch, self.places, self.time, x.shape[-1]).transpose(1, 2)
        places, group = self.shape[: len(self.shape) - self.channels], self.shape[len(self.shape) - self.channels :]
        whole = x.shape[-1] == self.width and self.width > 1
        return rows.reshape(*places, *(group if whole else (1,) * self.channels))

    def spikes(self, spikes: SpikeTensor) -> SpikeTensor:
        """A neuron's spikes ``[B·P, T, D]`` in the network's shape."""
        scale, counts = spikes.scale, spikes.counts
        if scale.numel() == 1:
            scale = scale.reshape(())
        elif scale.shape == (*counts.shape[:-1], 1):
            scale = self.fold(scale)
        else:
            scale = self.fold(scale.expand(counts.shape))
        if spikes.form == "dense":
            train = torch.stack([self.fold(slot).reshape(self.shape) for slot in spikes.train])
            return SpikeTensor.from_train(train, spikes.weights, scale, spikes.coder)
        return SpikeTensor(self.fold(counts).reshape(self.shape), scale)

    def flat(self, state: Any) -> Any:
        """A state kept as ``[B, P, …]`` as the neuron's ``[B·P, …]``."""
        return state if self.places == 1 else tree_map(lambda s: s.flatten(0, 1), state)

    def per_stream(self, state: Any) -> Any:
        """The neuron's state with the stream first, whatever P is."""
        return state if self.places == 1 else tree_map(lambda s: s.reshape(self.batch, -1, *s.shape[1:]), state)


def name_states(network: nn.Module) -> None:
    """Name every site of a network, and what else keeps a state over time, after its module: the key of its state."""
    for name, module in network.named_modules():
        if isinstance(module, TimeFoldedSite) or getattr(module, "keeps_state", False):
            module.label = name


FoldedSite = TimeFoldedSite  # the name before 0.2


__getattr__ = renamed(__name__, {"label": "name_states"})
