"""Conversion: what a rule is told (`Context`) and what it gives back (`Replacement`). Rules need nothing but this.

    class SnakeRule(Rule):
        name = "snake"
        covers = ("acme.Snake",)

        def matches(self, module):
            return isinstance(module, Snake)

        def convert(self, module, context):
            return context.spike(module, "spikes of x + sin²(αx)/α")

A rule may also ``lower(module)`` (a simpler module of the same value, which is converted instead) and
``lift(function, args, kwargs)`` (the module that a function called in somebody's ``forward`` stands for).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.spike_layers import reads_spikes
from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import SpikeTensor

STATUSES = ("converted", "approximated", "kept", "refused")
SPIKES = ("no", "in", "out", "made", "pass")


class ConversionError(FastSNNError):
    """A network, or a part of one, that cannot be converted: names the part, says why and what is possible."""


@attrs.frozen(eq=False)
class Replacement:
    """What stands in a module's place.

    `status`: *converted* (its work is done by spikes, exactly as its neurons count), *approximated* (it computes
    something else, see the note), *kept* (it works on numbers, as before), *refused* (with the reason).
    `spikes`: ``in`` reads spikes (a projection; a site is put in front where nothing spikes yet), ``out`` has its
    output turned into spikes by a site behind it, ``made`` returns a SpikeTensor by itself, ``pass`` hands spikes on as
    spikes, ``no`` sees numbers only. `data` is anything the report should say of it (plain JSON data).
    """

    module: nn.Module
    status: str = "converted"
    note: str = ""
    spikes: str = "no"
    data: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ConversionError(f"status {self.status!r} is none of {', '.join(STATUSES)}")
        if self.spikes not in SPIKES:
            raise ConversionError(f"spikes {self.spikes!r} is none of {', '.join(SPIKES)}")


@attrs.frozen
class Statistics:
    """Of a tensor of calibration data, its last dimensions taken together: what thresholds are chosen by."""

    mean_abs: float
    max_abs: float
    q999: float
    negative: float
    zero: float
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor) -> Statistics:
        """Measure `x`; `q999` is the 99.9 % point of |x| (of at most a million values, evenly taken)."""
        flat = x.detach().float().flatten()
        some = flat[:: max(1, flat.numel() // 1_000_000)].abs().sort().values
        high = float(some[int(0.999 * (len(some) - 1))]) if len(some) else 0.0
        mean, top = (float(flat.abs().mean()), float(flat.abs().max())) if flat.numel() else (0.0, 0.0)
        negative, zero = (float((flat < 0).float().mean()), float((flat == 0).float().mean())) if len(flat) else (0, 1)
        return cls(mean, top, high, negative, zero, tuple(x.shape))


@attrs.define(eq=False)
class Context:
    """What a rule may ask about the module it converts, and the words it answers with.

    `name`: the module's name. `wanted`: does a projection downstream read its output as spikes? `before` and `after`:
    the only module that feeds it, the only one it feeds, where both are called once and nothing else is between (what
    folding needs); changing their weights in place is allowed. `inputs` and `output`: calibration data, where given.
    `options`: what the user passed on to rules.
    """

    name: str
    make: Callable[[int, int], TimeFoldedSite]
    wanted: bool = True
    before: nn.Module | None = None
    after: nn.Module | None = None
    inputs: tuple[Any, ...] = ()
    output: Any = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    inner: Callable[[nn.Module, str], Replacement] | None = None

    # -- neurons -------------------------------------------------------------------------------------------------

    def neuron(self, features: int = 0, channels: int = 1) -> TimeFoldedSite:
        """A fresh spike site: ``x [N, …] -> SpikeTensor``, with one threshold per group of trailing `channels` dims.

        `features` is the width of a group; 0 takes it from calibration data, or else the user's fallback.
        """
        if not features and isinstance(self.output, Tensor) and self.output.ndim > channels:
            features = int(torch.Size(self.output.shape[-channels:]).numel())
        return self.make(features, channels)

    # -- answers -------------------------------------------------------------------------------------------------

    def keep(self, module: nn.Module, note: str = "") -> Replacement:
        """It stays as it is and works on numbers."""
        return Replacement(module, "kept", note)

    def project(self, module: nn.Module, note: str = "") -> Replacement:
        """It reads spikes: every multiplication becomes an event."""
        self.check(module, "is to read spikes")
        return Replacement(module, "converted", note, "in")

    def spike(self, module: nn.Module, note: str = "") -> Replacement:
        """Its output becomes spikes, where somebody downstream reads spikes; else it is kept."""
        if not self.wanted:
            return self.keep(module, "nothing downstream reads its output as spikes" + (f"; {note}" if note else ""))
        return Replacement(module, "converted", note, "out")

    @staticmethod
    def check(module: nn.Module, what: str) -> None:
        """A module that is handed spikes must say that it takes them."""
        if not reads_spikes(module):
            name = type(module).__name__
            raise ConversionError(f"{name} {what}, but does not say so: give the class `reads_spikes = True`")

    def passes(self, module: nn.Module, note: str = "") -> Replacement:
        """Spikes go through it as spikes."""
        self.check(module, "is to hand spikes on")
        return Replacement(module, "converted" if self.wanted else "kept", note, "pass")

    def fold(self, note: str) -> Replacement:
        """Nothing is left of it: a neighbour does its work, exactly."""
        return Replacement(nn.Identity(), "converted", note, "pass")

    def makes(self, module: nn.Module, note: str = "") -> Replacement:
        """It has sites of its own (`neuron`) and returns a SpikeTensor."""
        return Replacement(module, "converted", note, "made")

    def approximate(self, module: nn.Module, note: str, spikes: str = "no") -> Replacement:
        """Something else that comes close; the note says what it is. The report measures how close."""
        return Replacement(module, "approximated", note, spikes)

    def refuse(self, module: nn.Module, reason: str) -> Replacement:
        """It cannot be converted; it stays, and the report says why."""
        return Replacement(module, "refused", reason)

    def convert(self, child: nn.Module, name: str = "") -> nn.Module:
        """For composites: a child by its own rule, as a module that takes numbers or spikes."""
        if self.inner is None:
            raise ConversionError(f"{self.name}: this context converts no children")
        found = self.inner(child, name)
        if found.spikes == "in":
            return Encoded(found.module, self.make(0, channels_of(found.module)))
        if found.spikes == "out":
            return Spiking(found.module, self.make(0, 1))
        return found.module

    # -- data ----------------------------------------------------------------------------------------------------

    @property
    def statistics(self) -> dict[str, Statistics]:
        """Of the first input and of the output, where calibration data was given: ``{"input": …, "output": …}``."""
        found = {"input": self.inputs[0] if self.inputs else None, "output": self.output}
        return {key: Statistics.of(x) for key, x in found.items() if isinstance(x, Tensor) and x.is_floating_point()}


def declared_type(module: nn.Module) -> type:
    """The class that rules take a module for: its own, never a base class; or ``converts_as`` of its class.

    A subclass may compute more than its base (a batch norm with an activation), so rules compare types, not with
    isinstance. A class whose value is that of a torch.nn class says so: ``converts_as = nn.BatchNorm1d``.
    """
    return vars(type(module)).get("converts_as", type(module))


CHANNELS = {"Conv1d": 2, "ConvTranspose1d": 2, "Conv2d": 3, "ConvTranspose2d": 3, "Conv3d": 4, "ConvTranspose3d": 4}


def channels_of(module: nn.Module) -> int:
    """How many trailing dimensions a projection sums over in one go: all of ``[C, H, W]`` for images, else the last."""
    return CHANNELS.get(type(module).__name__, 1)


class Encoded(nn.Module):
    """A projection with its own site in front: ``module(spikes(x))``."""

    def __init__(self, module: nn.Module, site: TimeFoldedSite) -> None:
        super().__init__()
        self.site, self.module = site, module

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Numbers become spikes first; spikes are taken as they are."""
        return self.module(self.site(x), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Code around it may read the projection's weights."""
        return attribute_inside(self, name)


def attribute_inside(module: nn.Module, name: str) -> Any:
    """An attribute of a module, or of the one that it holds as ``module``."""
    try:
        return nn.Module.__getattr__(module, name)
    except AttributeError:
        inner = module.__dict__.get("_modules", {}).get("module")
        if inner is None:
            raise
        return getattr(inner, name)


class Spiking(nn.Module):
    """A module whose output becomes spikes and is handed on by value, to code that knows no spikes."""

    def __init__(self, module: nn.Module, site: TimeFoldedSite) -> None:
        super().__init__()
        self.module, self.site = module, site

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The value of the spikes."""
        spikes = self.site(self.module(*args, **kwargs))
        return spikes.value() if isinstance(spikes, SpikeTensor) else spikes

    def __getattr__(self, name: str) -> Any:
        """Code around it may read the module's settings."""
        return attribute_inside(self, name)
