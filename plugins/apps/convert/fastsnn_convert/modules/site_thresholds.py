"""The threshold of one spike site, chosen on calibration data.

    V* = argmin_V Σ_readers ‖ W s_V(x) - W x₀ ‖² / var(W x₀)        x as it arrives through the sites before it,
                                                                   x₀ as it would without spikes

over a grid of the largest value that is still counted; W are the projections that read the site, the identity where
none does. `layerwise` walks over a network and asks this of every site.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_conversion.time_folding import TimeFold, TimeFoldedSite
from fastsnn_convert.neurons import knob, largest_count, levels, limited, turned
from fastsnn_core.spike_tensor import densify

GRID = torch.logspace(-1.7, 0.0, 40).tolist()
ENOUGH = 1 << 18  # values that a threshold is chosen on
CHUNK = 64
PRIOR = 32.0  # samples that hold a projection's scale at 1 and its shift at 0
PROJECTIONS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@attrs.frozen
class ThresholdSettings:
    """How sites are tuned; see `fastsnn_convert.modules.convert.convert_module`."""

    steps: int | None
    code: str
    per_site: Mapping[str, int] | float | None
    refine: bool


@contextlib.contextmanager
def active(sites: Mapping[str, TimeFoldedSite], names: Any) -> Iterator[None]:
    """Only the sites in `names` spike; the others let numbers pass."""
    before = {name: site.blend for name, site in sites.items()}
    try:
        for name, site in sites.items():
            site.blend = before[name] if name in names else 0.0
        yield
    finally:
        for name, site in sites.items():
            site.blend = before[name]


# -- one site --------------------------------------------------------------------------------------------------------


def set_neuron(site: TimeFoldedSite, component: Any) -> None:
    """Another neuron in the same place, on the same device."""
    place = next((t for t in (*site.neuron.parameters(), *site.neuron.buffers())), None) if site.neuron else None
    site.component, site.neuron = component, component.build(site.features).eval()
    if place is not None:
        site.neuron.to(place.device, place.dtype if place.is_floating_point() else None)


def set_threshold(site: TimeFoldedSite, value: float, mean: float | None = None) -> None:
    """Turn a site's knob: k of an adaptive threshold, or θ of a fixed one (kept in units of mean |x|, too)."""
    neuron: Any = site.neuron
    if hasattr(neuron, "theta"):
        neuron.theta.data.fill_(value)
        site.component = turned(
            site.component, min(max(value / max(value if mean is None else mean, 1e-12), 1e-6), 1e4)
        )
    else:
        neuron.k.data.fill_(value)
        site.component = turned(site.component, value)


def candidates(site: TimeFoldedSite, x: Tensor) -> list[float]:
    """Knob positions worth trying: the largest counted value goes from a fiftieth of the largest value to all of it."""
    top = largest_count(site.neuron)
    if hasattr(site.neuron, "theta"):
        whole = float(x.abs().max())
        return [max(whole * part / top, 1e-8) for part in GRID]
    ratio = x.abs() / x.abs().mean(-1, keepdim=True).clamp_min(1e-12)
    whole = float(ratio.max())
    return [min(top / max(whole * part, 1e-8), 1e4) for part in GRID]


@attrs.frozen
class SiteReader:
    """A projection that reads a site, perhaps through pools: `run` on spikes or numbers, and its channels' dimension
    (None for the site's own values)."""

    run: Callable[[Any], Any]
    channels: int | None = None


def search(site: TimeFoldedSite, x: Tensor, x0: Tensor, readers: Sequence[SiteReader], biased: bool) -> None:
    """The knob position whose spikes of `x` give the readers what is closest to what `x0` gives them.

    `biased`: a mean error per channel does not count, since biases are going to take it up.
    """
    shrink = len(x) / (len(x) + PRIOR)
    grid = candidates(site, TimeFold(x0.shape, len(x0), 1, site.channels).unfold(x0))
    mean, tried = float(x0.abs().mean(dtype=torch.float64)), dict[int, float]()
    wanted = [densify(reader.run(x0)) for reader in readers]
    sizes = [max(float(y.var(correction=0)), 1e-12) for y in wanted]

    def error(i: int) -> float:
        if i not in tried:
            set_threshold(site, grid[i], mean)
            spikes = site(x)
            tried[i] = 0.0
            for reader, y0, size in zip(readers, wanted, sizes):
                off = densify(reader.run(spikes)) - y0
                if biased and reader.channels is not None:
                    off = by_channel(off, reader.channels)
                    off = off - off.mean(0) * shrink
                tried[i] += float(off.square().mean(dtype=torch.float64)) / size
        return tried[i]

    best = min(range(0, len(grid), 3), key=error)
    best = min((i for i in range(best - 2, best + 3) if 0 <= i < len(grid)), key=error)
    set_threshold(site, grid[best], mean)


def by_channel(y: Tensor, dim: int) -> Tensor:
    """``[rows, C]`` with channels taken from dimension `dim`."""
    return y.movedim(dim, -1).flatten(0, -2)


def bound(sites: Mapping[str, TimeFoldedSite], settings: ThresholdSettings) -> dict[str, int | None]:
    """Bound the counts of every site by its steps; returns them."""
    wanted: dict[str, int | None] = dict.fromkeys(sites, settings.steps)
    if isinstance(settings.per_site, Mapping):
        wanted |= dict(settings.per_site)
    if settings.steps is None and isinstance(settings.per_site, int | float):
        raise ConversionError("steps_per_site as a number needs steps=, the most steps that a site may have")
    for name in sites:
        if (most := wanted[name]) is not None:
            set_neuron(sites[name], limited(sites[name].component, levels(most, settings.code)))
    return wanted


def check_finite(name: str, pieces: Sequence[Tensor]) -> None:
    """Values that a site gets are numbers."""
    if not all(bool(piece.isfinite().all()) for piece in pieces):
        raise ConversionError(
            f"values that come to {name!r} are NaN or infinite on the calibration data: the network overflows there, "
            "or divides by zero; look at its outputs on these inputs first"
        )


@torch.no_grad()
def tune_in_place(
    network: nn.Module,
    sites: Mapping[str, TimeFoldedSite],
    data: Sequence[Tensor],
    settings: ThresholdSettings,
    *,
    calibrated: bool,
) -> None:
    """Thresholds of a network that is no list of steps: each on the dense values that come to it, in one pass."""
    bound(sites, settings)
    seen: dict[str, list[Tensor]] = {name: [] for name in sites}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            room = ENOUGH - sum(x.numel() for x in seen[name])
            if room > 0:
                rows = args[0].flatten(0, 1)
                seen[name].append(rows[:: max(1, rows.numel() // room)][:, None].clone())

        return hook

    handles = [site.neuron.register_forward_pre_hook(keep(name)) for name, site in sites.items() if site.neuron]
    try:
        with active(sites, ()):
            for pieces in zip(*(x.split(CHUNK) for x in data)):
                network(*pieces)
    finally:
        for handle in handles:
            handle.remove()
    for name, site in sites.items():
        if not seen[name] or knob(site.component) is None:  # the data does not reach it
            continue
        x0 = torch.cat(seen[name])
        check_finite(name, [x0])
        if calibrated and settings.steps is not None and math.isfinite(largest_count(site.neuron)):
            flat = TimeFoldedSite.of(site.component, site.features)
            flat.neuron, flat.component = site.neuron, site.component
            search(flat, x0[:, 0], x0[:, 0], [SiteReader(lambda x: x)], False)
            site.component = flat.component
        elif hasattr(site.neuron, "calibrate_"):
            site.neuron.calibrate_(x0)
