"""Tensors of a checkpoint in our terms: gains of norms, and the order of channels that rotary positions turn."""

from __future__ import annotations

import torch
from torch import Tensor

from fastsnn_model_decoder import Decoder


@torch.no_grad()
def in_our_terms(name: str, parameter: Tensor, spec: Decoder, norm_offset: float) -> None:
    """A parameter of ours, which holds what the file has, becomes what we mean, in place.

    `norm_offset` is what the file's norms are less than their gains; q and k have the turning channels first there.
    """
    if norm_offset and name.endswith("norm.weight"):
        parameter.add_(norm_offset)
    if spec.rope.share < 1.0 and name.rpartition(".")[0].endswith((".attention.q", ".attention.k")):
        width = spec.dims.head_dim
        heads = parameter.view(-1, width, *parameter.shape[1:])
        heads.copy_(heads[:, spec.rope.order(width)].clone())
