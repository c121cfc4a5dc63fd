"""How the spikes are doing: firing per site, silent and saturated sites, and what to do about them."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import nn

from fastsnn_core.probe import Trace

SILENT, SATURATED = 0.999, 0.5


@attrs.frozen
class SiteHealth:
    """Share of silent channels, mean |count|, and share of counts at the neuron's limit."""

    silent: float
    mean_count: float
    saturated: float


@torch.no_grad()
def site_health(trace: Trace) -> dict[str, SiteHealth]:
    """Health of every recorded site; only sums, so that it is cheap enough for training."""
    found = {}
    for name, record in trace.items():
        counts = record.spikes.counts.abs()
        limit = limit_of(record.module)
        at_limit = float((counts >= limit).float().mean()) if math.isfinite(limit) else 0.0
        found[name] = SiteHealth(float((counts == 0).float().mean()), float(counts.float().mean()), at_limit)
    return found


def limit_of(module: nn.Module) -> float:
    """Largest count a neuron can give."""
    return float(getattr(module, "hi", getattr(module, "bound", math.inf)))


def firing(found: dict[str, SiteHealth]) -> dict[str, float]:
    """Means over sites: what the log and the progress bar show."""
    if not found:
        return {}
    n = len(found)
    return {
        "silent": sum(h.silent for h in found.values()) / n,
        "mean_count": sum(h.mean_count for h in found.values()) / n,
    }


def complaints(found: dict[str, SiteHealth], modules: dict[str, nn.Module]) -> dict[str, str]:
    """What is wrong with which site, with the fix in the message."""
    says = {}
    for name, h in found.items():
        module = modules.get(name)
        fixed = hasattr(module, "calibrate_")
        if h.silent > SILENT:
            fix = "lower its threshold (or call calibrate_ on real activations)" if fixed else "raise its k"
            says[name] = f"{name} is silent ({h.silent:.1%} of counts are 0): {fix}, or lower the learning rate"
        elif h.saturated > SATURATED and limit_of(module or nn.Identity()) > 1:
            fix = "raise its threshold or its limit" if fixed else "raise its limit or lower its k"
            says[name] = f"{name} is saturated ({h.saturated:.1%} of counts are at the limit): {fix}"
    return says


def first_bad(model: nn.Module, run: Any) -> str:
    """Name of the first module whose output is not finite when `run()` is called, for the message of a stopped run."""
    bad: list[str] = []
    handles = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            value = first.value() if hasattr(first, "counts") else first
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                bad.append(name)

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(watch(name or "the model")))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return bad[0] if bad else "the loss (every layer's output is finite)"
