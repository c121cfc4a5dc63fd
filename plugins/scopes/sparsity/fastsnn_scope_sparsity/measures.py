"""The sparsities of every site of a trace, and their mean over sites."""

from __future__ import annotations

import torch

from fastsnn_core.probe import Trace
from fastsnn_core.spike_tensor import Sparsity


def sparsities(trace: Trace) -> dict[str, Sparsity]:
    """The three sparsities of every recorded module."""
    return {name: record.spikes.sparsity() for name, record in trace.items()}


def overall(found: dict[str, Sparsity], sizes: dict[str, int] | None = None) -> Sparsity:
    """Channel-weighted mean over modules; `steps` is the largest any of them needs."""
    if not found:
        return Sparsity(0.0, 0.0, 0.0, 0, 0.0, 0)
    weights = torch.tensor([float((sizes or {}).get(name, 1)) for name in found])
    weights = weights / weights.sum()

    def mean(field: str) -> float:
        return float((weights * torch.tensor([getattr(s, field) for s in found.values()])).sum())

    steps, spikes = max(s.steps for s in found.values()), mean("spikes_per_channel")
    largest = max(s.largest for s in found.values())
    return Sparsity(mean("silent_fraction"), spikes, 1.0 - spikes / max(1, steps), steps, mean("mean_count"), largest)
