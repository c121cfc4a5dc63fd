"""Estimated cost of each site's dial in a large decoder: for all sites from one backward pass.

In a small model each site's dial is set alone and the cost is measured (`fastsnn_tune.dial_order.dial_steps`); a
model of 120 sites and 135 million parameters would be read hundreds of times for it. Here the cost of a value is
½ Σ_i F_i E[δ_i²], with δ what the site passes on there less what it passes on now, and F the Fisher information of its
channels with all spikes as they are (`fastsnn_convert.language.output_sensitivity`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsnn_console.progress import Progress
from fastsnn_convert.language.distillation_settings import LARGE
from fastsnn_convert.language.output_sensitivity import sensitivities
from fastsnn_convert.language.rebuild import site_table
from fastsnn_core.site import sites
from fastsnn_tune.dial import DialSetting, dial_settings

SAMPLES = 256
"""Tokens on which values of a dial are tried."""


def is_large(model: Any) -> bool:
    """Is it a decoder of so many parameters that its sites cannot be tried one by one?"""
    if not hasattr(model, "layers") or not hasattr(model, "embed_site"):
        return False
    known = {path for path, (_, site) in site_table(model).items() if site.neuron is not None}
    return sum(p.numel() for p in model.parameters()) >= LARGE and known == set(sites(model))


def ladders(model: Any, names: dict[str, str], tokens: Tensor, *, quiet: bool = False) -> dict[str, list[DialSetting]]:
    """Values of every site's dial; `error` is the estimated cost in nats per token. ``tokens [N,T]``."""
    found: dict[str, list[DialSetting]] = {}
    table = sites(model)
    with Progress("costs of all sites", 2 * len(model.layers), "half blocks", quiet=quiet) as progress:
        for block in sensitivities(model, tokens, samples=SAMPLES, step=progress.step, spiking=True):
            for path, seen in block.sites.items():
                site = table[path]
                x = seen.x if site.centre is None else seen.x - site.centre.detach()
                found[path] = dial_settings(site, names[path], x[None], 0.5 * seen.fisher)
    return {path: found[path] for path in names}


@torch.no_grad()
def site_widths(model: Any) -> dict[str, int]:
    """Channels of every site."""
    return {name: site.features for name, site in sites(model).items()}
