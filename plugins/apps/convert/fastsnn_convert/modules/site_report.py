"""Figures of a converted module's report: spikes of every site, and what each costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_convert.modules.layerwise import Figures
from fastsnn_convert.modules.site_thresholds import CHUNK, active
from fastsnn_convert.neurons import largest_count, smallest_count
from fastsnn_core.probe import probe
from fastsnn_core.spike_tensor import SpikeTensor


@torch.no_grad()
def fill_site_rows(
    network: nn.Module,
    sites: Mapping[str, TimeFoldedSite],
    data: tuple[Tensor, ...],
    rows: list[dict[str, Any]],
    *,
    errors: bool,
    figures: Mapping[str, Figures] | None = None,
) -> None:
    """Fill the rows' figures in: spikes always, errors where the data is real.

    `figures`: errors by site, where calibration measured them on its way; otherwise they are measured on `data`,
    against the network without spikes.
    """
    by_site = {r["site"]: r for r in rows if r["site"]}
    some = tuple(x[:256].clone() for x in data)
    saturated: dict[str, float] = {}
    handles = [site.neuron.register_forward_hook(clipping(saturated, name)) for name, site in sites.items()]
    try:
        with probe(network) as trace:
            network(*some)
    finally:
        for handle in handles:
            handle.remove()
    for name, record in trace.items():
        site = next((s for s in sites.values() if s.neuron is record.module), None)
        found = record.spikes.sparsity(declared_steps(site))
        if (r := by_site.get(name)) is not None:
            r |= {
                "silent_fraction": found.silent_fraction, "spikes_per_channel": found.spikes_per_channel,
                "slot_sparsity": found.slot_sparsity, "steps": found.steps, "largest": found.largest,
                "saturation": saturated.get(name, 0.0), "channels": record.spikes.numel() // max(1, len(some[0])),
            }  # fmt: skip
    if not errors:
        return
    for name, figure in (local_errors(network, sites, data) if figures is None else figures).items():
        if (r := by_site.get(name)) is not None:
            r["error"], r["cumulative"] = figure.errors()


@torch.no_grad()
def local_errors(network: nn.Module, sites: Mapping[str, TimeFoldedSite], data: Sequence[Tensor]) -> dict[str, Figures]:
    """Errors of every site against the network without spikes, in two passes over the data for all of them."""
    dense: dict[str, list[Tensor]] = {}
    found: dict[str, Figures] = {}
    counts: dict[str, int] = {}
    spiking = False

    def hook(name: str) -> Any:
        def see(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            x, value = args[0].double(), out[0].value().double()
            if not spiking:
                dense.setdefault(name, []).append(x)
                figures = found.setdefault(name, Figures(0.0, 0.0, 0.0))
                counts[name] = counts.get(name, 0) + x.numel()
                figures.spread += float((x - x.mean()).square().sum())
                figures.alone += float((value - x).square().sum())
            elif dense.get(name) and dense[name][0].shape == x.shape:
                found[name].so_far += float((value - dense[name].pop(0)).square().sum())

        return see

    handles = [site.neuron.register_forward_hook(hook(name)) for name, site in sites.items() if site.neuron is not None]
    try:
        for pieces in zip(*(x.split(CHUNK) for x in data)):
            dense.clear()
            spiking = False
            with active(sites, ()):
                network(*(x.clone() for x in pieces))
            spiking = True
            network(*(x.clone() for x in pieces))
    finally:
        for handle in handles:
            handle.remove()
    return found


def declared_steps(site: TimeFoldedSite | None) -> int | None:
    """Binary digits that a site's largest count needs; None where counts are not bounded."""
    top = largest_count(site.neuron) if site is not None else math.inf
    return int(top).bit_length() if math.isfinite(top) else None


def clipping(found: dict[str, float], name: str) -> Any:
    """A hook that measures which share of channels wanted a larger count than there is."""

    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        spikes: SpikeTensor = out[0]
        top, low = largest_count(module), smallest_count(module)
        counts = spikes.counts
        beyond = (args[0].float() - spikes.value()).abs() > 0.51 * spikes.scale.abs()
        at_end = (counts >= top) | ((counts <= low) & (low < 0))
        found[name] = float((beyond & at_end).float().mean()) if counts.numel() else 0.0

    return hook


def quality(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of the whole: channel-weighted sparsity, and slots."""
    spiking = [r for r in rows if r["silent_fraction"] is not None]
    if not spiking:
        return {}
    total = sum(r["channels"] for r in spiking)

    def mean(key: str) -> float:
        return sum(r[key] * r["channels"] for r in spiking) / total

    return {
        "silent_fraction": mean("silent_fraction"), "spikes_per_channel": mean("spikes_per_channel"),
        "saturation": mean("saturation"), "steps": max(r["steps"] for r in spiking),
    }  # fmt: skip
