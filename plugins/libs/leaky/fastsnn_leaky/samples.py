"""Sample inputs of the leaky scan, on which the conformance kit compares kernels with the naive twins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

Sample = tuple[Any, ...]
RULES = ((0.5, -2.0, 2.0, False, False), (0.9, 0.0, 1.0, True, True), (0.0, 0.0, float("inf"), False, False))


def scans() -> Iterator[tuple[Any, ...]]:
    """``(x, v, keep, theta, rule)``: several rules, resets, and lengths around a checkpoint."""
    for i, rule in enumerate(RULES):
        for t in (1, 5, 130):
            draw = torch.Generator().manual_seed(100 * i + t)
            x, v = torch.randn(2, t, 37, generator=draw) * 2, torch.randn(2, 37, generator=draw)
            keep = torch.rand(2, t, generator=draw) > 0.2 if t == 5 else torch.empty(0, 0, dtype=torch.bool)
            yield x, v, keep, torch.tensor(0.37 + i), rule


def forward() -> Iterator[Sample]:
    """Of ``lif_scan``."""
    for x, v, keep, theta, rule in scans():
        yield x, v, keep, theta, *rule
        yield x.double(), v.double(), keep, theta.double(), *rule


def membrane() -> Iterator[Sample]:
    """Of ``lif_membrane``."""
    for x, v, keep, theta, rule in scans():
        yield x, v[:, None], keep, theta, *rule


def backward() -> Iterator[Sample]:
    """Of ``lif_scan_backward``, with every closed form of the surrogate and a table of slopes."""
    from fastsnn_leaky.scan import forward_naive

    for i, (x, v, keep, theta, rule) in enumerate(scans()):
        marks = forward_naive(x, v, keep, theta, *rule)[2]
        draw = torch.Generator().manual_seed(i)
        grad, end = torch.randn(x.shape, generator=draw), torch.randn(v.shape, generator=draw)
        slope = torch.rand(x.shape, generator=draw) if i % 2 else x.new_empty(0)
        form = ((0, 0.0), (1, 0.5), (2, 2.0))[i % 3]
        yield grad, end, x, marks, keep, slope, theta, *rule, *form, bool(i % 2)
