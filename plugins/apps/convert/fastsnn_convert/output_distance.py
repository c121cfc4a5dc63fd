"""Outputs of a network, and how far two of them are from each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def output(network: nn.Module, data: tuple[Tensor, ...], batch: int = 256) -> Tensor:
    """The network's output on the data, batch by batch, as one tensor ``[N, …]`` (all outputs side by side)."""
    rows = []
    for pieces in zip(*(x.split(batch) for x in data)):
        rows.append(flat(network(*pieces)))
    return torch.cat(rows)


def flat(found: Any) -> Tensor:
    """An output as ``[N, …]``, several side by side."""
    tensors = [found] if isinstance(found, Tensor) else [t for t in found if isinstance(t, Tensor)]
    return torch.cat([t.flatten(1).float() for t in tensors if t.is_floating_point()], 1)


def distance(y: Tensor, y0: Tensor) -> float:
    """‖y - y₀‖ / ‖y₀ - mean y₀‖."""
    spread = (y0 - y0.mean(0)).norm() if len(y0) > 1 else y0.norm()
    return float((y - y0).norm() / spread.clamp_min(1e-12))


def apart(y: Tensor, y0: Tensor) -> float:
    """√ mean of 2 (1 - cos(y, y₀)) + (ln ‖y‖ / ‖y₀‖)² / 10 over the samples, each without its mean.

    What thresholds are refined on: ‖y - y₀‖ is smallest for outputs that have shrunk, and samples with large outputs
    say most of it; the largest channel depends on neither. Below three channels directions say nothing: `distance`.
    """
    if y.shape[-1] < 3:
        return distance(y, y0)
    y, y0 = (z - z.mean(-1, keepdim=True) for z in (y, y0))
    size, size0 = (z.norm(dim=-1).clamp_min(1e-12) for z in (y, y0))
    turned = 2 - 2 * (y * y0).sum(-1) / (size * size0)
    return float((turned + 0.1 * (size / size0).log().square()).mean().clamp_min(0).sqrt())
