"""Convolutions of spikes: on the counts, scaled once, bias last.

    y = scale · conv(counts, W) + b = scale · Σ_s weight_s · conv(train_s, W) + b

With whole-number weights the sums are exact, so counts and trains give the same bits. Shapes as `torch.nn.functional`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import HALF
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_events.linear import spike_linear

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


def collated(batch: list[SpikeTensor]) -> SpikeTensor:
    """Spikes of one shape as a batch of spikes, ``[…] × B -> [B, …]``; errors: FastSNNError for several shapes."""
    if len(shapes := sorted({tuple(s.shape) for s in batch})) > 1:
        raise FastSNNError(f"spikes of shapes {', '.join(map(str, shapes))} do not make a batch; pad or cut them")
    scales = [s.scale.reshape([1] * (s.ndim - s.scale.ndim) + list(s.scale.shape)) for s in batch]
    scales = scales if len({s.shape for s in scales}) == 1 else [s.expand(batch[0].shape) for s in scales]
    return batch[0].like(torch.stack([s.counts for s in batch]), torch.stack(scales))


FUNCTIONS: dict[Any, Callable[..., Any]] = {torch.nn.functional.linear: spike_linear, default_collate: collated}
FUNCTIONS |= {f: partial(spike_conv, f) for f in CONVOLUTIONS}
"""What torch's functions do with a SpikeTensor (the entry point of ``fastsnn1.functions``)."""
