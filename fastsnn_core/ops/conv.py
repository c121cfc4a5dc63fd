"""Convolutions of spikes: on the counts, scaled once, bias last.

    y = scale · conv(counts, W) + b = scale · Σ_s weight_s · conv(train_s, W) + b

With whole-number weights the sums are exact, so counts and trains give the same bits. Shapes as `torch.nn.functional`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.ops.operands import HALF
from fastsnn_core.spike_tensor import SpikeTensor

CONVOLUTIONS = (
    torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
)  # fmt: skip


def spike_conv(
    function: Callable[..., Tensor],
    spikes: SpikeTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """`function` (one of `CONVOLUTIONS`) of spikes; a threshold that varies inside a sample cannot leave the sum."""
    kind = weight.dtype
    if kind in HALF:  # as `spike_linear`
        weight, bias = weight.float(), None if bias is None else bias.float()
    scale, counts = spikes.scale.to(weight.dtype), spikes.counts.to(weight.dtype)
    batched = counts.ndim == weight.ndim and scale.ndim == counts.ndim
    if any(n != 1 for n in scale.shape[1 if batched else 0 :]):
        return function(counts * scale, weight, bias, *args, **kwargs).to(kind)
    out = function(counts, weight, None, *args, **kwargs) * scale
    return (out if bias is None else out + bias.reshape(-1, *[1] * (weight.ndim - 2))).to(kind)
