"""Outputs of a network, and how far two of them are from each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError


@torch.no_grad()
def output(network: nn.Module, data: Sequence[Tensor], batch: int = 256) -> Tensor:
    """The network's output on the data, batch by batch, as one tensor ``[N, …]`` (all outputs side by side)."""
    rows = []
    for pieces in zip(*(x.split(batch) for x in data)):
        rows.append(flat_outputs(network(*(x.clone() for x in pieces)), len(pieces[0])))
    return torch.cat(rows)


def flat_outputs(found: Any, batch: int) -> Tensor:
    """An output as ``[N, …]``: its floating-point tensors that have the batch first, side by side."""
    tensors = [t for t in output_tensors(found) if t.is_floating_point() and t.ndim and len(t) == batch]
    if not tensors:
        kinds = ", ".join(f"{type(t).__name__} {list(t.shape)}" for t in output_tensors(found)) or type(found).__name__
        raise ConversionError(f"the network has no output of numbers with the batch ({batch}) first; it gives {kinds}")
    return torch.cat([t.flatten(1).float() for t in tensors], 1)


def output_tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of an output: of tuples, lists, dicts and objects of named fields, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from output_tensors(item)
    elif isinstance(tree, dict):
        yield from output_tensors(list(tree.values()))
    elif hasattr(tree, "__dataclass_fields__"):
        yield from output_tensors([getattr(tree, name) for name in tree.__dataclass_fields__])


def distance(y: Tensor, y0: Tensor) -> float:
    """‖y - y₀‖ / ‖y₀ - mean y₀‖; relative to ‖y₀‖ where outputs hardly differ between samples (`reference`)."""
    size = (y0 - y0.mean(0)).norm() if reference(y0) == "spread" else y0.norm()
    return float((y - y0).norm() / size.clamp_min(1e-12))


def reference(y0: Tensor) -> str:
    """What errors of outputs are relative to: their ``spread`` over the samples, or their ``size`` where they are
    nearly constant (a spread under a hundredth of it) or of one sample."""
    return "spread" if len(y0) > 1 and (y0 - y0.mean(0)).norm() > 0.01 * y0.norm() else "size"
