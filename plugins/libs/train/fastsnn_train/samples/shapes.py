"""Samples in the shape that the network takes: channels first, a channel added, time in front."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_train.data.documents import DataError


def wanted_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Shape of one sample without time, by the network's spec; None where nothing says it."""
    spec: Any = getattr(model, "spec", None)
    shape = getattr(spec, "input", None)
    return tuple(shape) if isinstance(shape, tuple) and all(isinstance(n, int) for n in shape) else None


def fitted(x: Tensor, want: tuple[int, ...] | None, name: str) -> Tensor:
    """``[B, *want]`` or ``[B, T, *want]`` out of what the data has: ``[B,H,W]``, ``[B,H,W,C]``, ``[B,T]``, flat."""
    if want is None:
        return x
    shape, n = tuple(x.shape[1:]), len(want)
    if shape == want or shape[1:] == want:
        return x
    if shape == want[1:] and want[0] == 1:
        return x.unsqueeze(1)
    if len(shape) == n >= 2 and shape[-1] == want[0] and shape[:-1] == want[1:]:
        return x.movedim(-1, 1)
    if len(shape) == n + 1 and n >= 2 and shape[-1] == want[0] and shape[1:-1] == want[1:]:
        return x.movedim(-1, 2)
    if want == (1,) and len(shape) == 1:
        return x.unsqueeze(-1)  # a series of numbers
    if n == 1 and torch.Size(shape).numel() == want[0]:
        return x.flatten(1)
    raise DataError(
        f"{name} has the shape {list(shape)}; the network takes {list(want)}, or {['T', *want]} with time".replace(
            "'", ""
        )
    )
