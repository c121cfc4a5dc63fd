"""Calibration of converted modules: a threshold per site from data, steps per site, and what each site costs.

Sites are taken in the order in which they run. For each, on the data as it arrives through the sites before it,

    V* = argmin_V ‖ V · clip(round(x / V)) - x₀ ‖²        x as it arrives, x₀ as it would without spikes

over a grid of the largest value that is still counted. `refine` then moves each threshold by the error of the network's
output (`outputs.apart`). Sites without a largest count keep the neuron's own setting (k spikes a channel).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_conversion.time_folding import FoldedSite
from fastsnn_convert.neurons import knob, largest_count, levels, limited, turned
from fastsnn_convert.output_distance import apart, distance, output

GRID = torch.logspace(-1.7, 0.0, 40).tolist()
ENOUGH = 1 << 20  # values that a threshold is chosen on
MOVES = (0.6, 0.75, 0.87, 1.15, 1.35, 1.7)
ROUNDS = 2


@attrs.frozen
class Settings:
    """How sites are tuned; see `fastsnn_convert.modules.convert_module`."""

    steps: int | None
    code: str
    per_site: Mapping[str, int] | float | None
    refine: bool


@contextlib.contextmanager
def active(sites: Mapping[str, FoldedSite], names: Any) -> Iterator[None]:
    """Only the sites in `names` spike; the others let numbers pass."""
    before = {name: site.blend for name, site in sites.items()}
    try:
        for name, site in sites.items():
            site.blend = before[name] if name in names else 0.0
        yield
    finally:
        for name, site in sites.items():
            site.blend = before[name]


@torch.no_grad()
def arriving(network: nn.Module, site: FoldedSite, data: tuple[Tensor, ...], batch: int = 256) -> Tensor:
    """What comes to a site, as its neuron sees it: ``[rows, 1, D]``."""
    rows: list[Tensor] = []
    assert site.neuron is not None
    handle = site.neuron.register_forward_pre_hook(lambda _, args: rows.append(args[0].flatten(0, 1)))
    try:
        for pieces in zip(*(x.split(batch) for x in data)):
            network(*pieces)
    finally:
        handle.remove()
    return torch.cat(rows)[:, None]


def set_neuron(site: FoldedSite, component: Any) -> None:
    """Another neuron in the same place, on the same device."""
    place = next((t for t in (*site.neuron.parameters(), *site.neuron.buffers())), None) if site.neuron else None
    site.component, site.neuron = component, component.build(site.features).eval()
    if place is not None:
        site.neuron.to(place.device)


def set_threshold(site: FoldedSite, value: float, x: Tensor | None = None) -> None:
    """Turn a site's knob: k of an adaptive threshold, or θ of a fixed one (kept in units of mean |x|, too)."""
    neuron: Any = site.neuron
    if hasattr(neuron, "theta"):
        neuron.theta.data.fill_(value)
        mean = float(x.abs().mean()) if x is not None else value
        site.component = turned(site.component, min(max(value / max(mean, 1e-12), 1e-6), 1e4))
    else:
        neuron.k.data.fill_(value)
        site.component = turned(site.component, value)


def threshold(site: FoldedSite) -> float:
    """Where the knob stands."""
    neuron: Any = site.neuron
    return float(neuron.theta if hasattr(neuron, "theta") else neuron.k)


def candidates(site: FoldedSite, x: Tensor) -> list[float]:
    """Knob positions worth trying: the largest counted value goes from a fiftieth of the largest value to all of it."""
    top = largest_count(site.neuron)
    if hasattr(site.neuron, "theta"):
        whole = float(x.abs().max())
        return [max(whole * part / top, 1e-8) for part in GRID]
    ratio = x.abs() / x.abs().mean(-1, keepdim=True).clamp_min(1e-12)
    whole = float(ratio.max())
    return [min(top / max(whole * part, 1e-8), 1e4) for part in GRID]


@torch.no_grad()
def fit(site: FoldedSite, x: Tensor, x0: Tensor) -> None:
    """The knob position whose spikes of `x` come closest to `x0`."""
    every = max(1, x.numel() // ENOUGH)
    x, x0 = x[::every], x0[::every]
    best, where = math.inf, threshold(site)
    for value in candidates(site, x0):
        set_threshold(site, value, x0)
        spikes, _ = site.neuron(x, None, None)
        error = float((spikes.value() - x0).square().sum(dtype=torch.float64))
        if error < best:
            best, where = error, value
    set_threshold(site, where, x0)


def order(network: nn.Module, sites: Mapping[str, FoldedSite], data: tuple[Tensor, ...]) -> list[str]:
    """Names of the sites in the order in which they run on the data; those that it does not reach are left out."""
    seen: list[str] = []
    handles = [
        site.register_forward_hook(lambda _m, _a, _o, name=name: seen.append(name)) for name, site in sites.items()
    ]
    try:
        with torch.no_grad():
            network(*(x[:256] for x in data))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(seen))


def tune(
    network: nn.Module,
    sites: Mapping[str, FoldedSite],
    data: tuple[Tensor, ...],
    settings: Settings,
    *,
    calibrated: bool,
) -> None:
    """Bound the counts of every site by its steps and set its threshold; `network` is in evaluation mode."""
    if not sites:
        return
    names = order(network, sites, data)
    wanted: dict[str, int | None] = dict.fromkeys(sites, settings.steps)
    if isinstance(settings.per_site, Mapping):
        wanted |= dict(settings.per_site)
    if settings.steps is None and isinstance(settings.per_site, int | float):
        raise ConversionError("steps_per_site as a number needs steps=, the most steps that a site may have")
    for name in sites:
        if (most := wanted[name]) is not None:
            set_neuron(sites[name], limited(sites[name].component, levels(most, settings.code)))
    thresholds(network, sites, names, data, settings, calibrated)
    if isinstance(settings.per_site, int | float) and calibrated:
        save_steps(network, sites, names, data, settings, wanted)


def thresholds(
    network: nn.Module,
    sites: Mapping[str, FoldedSite],
    names: list[str],
    data: tuple[Tensor, ...],
    settings: Settings,
    calibrated: bool,
) -> None:
    """The threshold of every site in `names`, one after the other, then by the output's error."""
    done: list[str] = [name for name in sites if name not in names]
    for name in names:
        site = sites[name]
        if knob(site.component) is None:
            done.append(name)
            continue
        with active(sites, ()):
            x0 = arriving(network, site, data)
        if math.isfinite(largest_count(site.neuron)) and calibrated and settings.steps is not None:
            with active(sites, done):
                x = arriving(network, site, data)
            fit(site, x, x0)
        elif hasattr(site.neuron, "calibrate_"):
            site.neuron.calibrate_(x0)
        done.append(name)
    if settings.refine and calibrated and settings.steps is not None:
        refine(network, sites, names, data)


def refine(network: nn.Module, sites: Mapping[str, FoldedSite], names: list[str], data: tuple[Tensor, ...]) -> None:
    """Move one threshold at a time while the output comes closer by `apart`, and goes no farther by `distance`."""
    with active(sites, ()):
        y0 = output(network, data)
    y = output(network, data)
    best, far = apart(y, y0), distance(y, y0)
    for _ in range(ROUNDS):
        before = best
        for name in names:
            site = sites[name]
            if knob(site.component) is None or not math.isfinite(largest_count(site.neuron)):
                continue
            start = kept = threshold(site)
            component = site.component
            mean = None
            if hasattr(site.neuron, "theta"):
                with active(sites, ()):
                    mean = arriving(network, site, tuple(x[:64] for x in data)).abs().mean()
            for move in MOVES:
                set_threshold(site, start * move, mean)
                y = output(network, data)
                if (error := apart(y, y0)) < best and distance(y, y0) <= far:
                    best, kept, component = error, start * move, site.component
            set_threshold(site, kept, mean)
            site.component = component
        if best > 0.995 * before:
            break


def save_steps(
    network: nn.Module,
    sites: Mapping[str, FoldedSite],
    names: list[str],
    data: tuple[Tensor, ...],
    settings: Settings,
    steps: dict[str, Any],
) -> None:
    """Take a step away where it costs the output least, as long as the error stays within the bound."""
    assert isinstance(settings.per_site, int | float)
    with active(sites, ()):
        y0 = output(network, data)
    bound, stuck = float(settings.per_site), set[str]()
    while True:
        best: tuple[float, str, Any, dict[str, Tensor]] | None = None
        for name in names:
            if steps[name] in (None, 1) or name in stuck:
                continue
            site = sites[name]
            component, state = site.component, {k: v.clone() for k, v in site.neuron.state_dict().items()}
            set_neuron(site, limited(component, levels(steps[name] - 1, settings.code)))
            thresholds(network, sites, [name], data, attrs.evolve(settings, refine=False), True)
            error = distance(output(network, data), y0)
            if error <= bound and (best is None or error < best[0]):
                best = (error, name, site.component, {k: v.clone() for k, v in site.neuron.state_dict().items()})
            elif error > bound:
                stuck.add(name)
            set_neuron(site, component)
            site.neuron.load_state_dict(state)
        if best is None:
            return
        _, name, component, state = best
        set_neuron(sites[name], component)
        sites[name].neuron.load_state_dict(state)
        steps[name] -= 1
