"""What scopes share: which sites to show, and how many spikes a count is under a bitwise coder."""

from __future__ import annotations

from fnmatch import fnmatch

import torch
from torch import Tensor

from fastsnn_core import SpikeTensor


def sites_to_show(names: list[str], patterns: tuple[str, ...], most: int) -> list[str]:
    """Names that match a pattern (``*``, ``?``); without patterns at most `most` of them, evenly spaced."""
    if patterns:
        return [n for n in names if any(fnmatch(n, p) for p in patterns)]
    if len(names) <= most:
        return names
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def bitwise_spikes(spikes: SpikeTensor) -> Tensor:
    """Spikes of each count under a bitwise coder, the set bits of its magnitude; of a train, its non-zero slots."""
    if spikes.form == "dense":
        return spikes.train.detach().abs().sum(0).long()
    left = spikes.counts.detach().abs().round().long()
    total = torch.zeros_like(left)
    while bool(left.any()):
        total += left & 1
        left = left >> 1
    return total
