"""A batch norm as the affine map that it is in evaluation, BN(x) = a x + b per channel, and folded into a projection.

    a = γ / √(σ² + ε)      b = β - a μ      W' = a W,  b' = a b_W + b   (into the layer before it)

Computed in float64, so that one rounding is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """(a, b) with norm(x) = a x + b per channel, from the running statistics, in float64."""
    a = torch.rsqrt(norm.running_var.double() + norm.eps)
    a = a if norm.weight is None else a * norm.weight.double()
    b = -a * norm.running_mean.double()
    return a, b if norm.bias is None else b + norm.bias.double()


def set_weights(module: Any, weight: Tensor, bias: Tensor) -> None:
    """Write both, making a bias where there was none."""
    with torch.no_grad():
        module.weight.copy_(weight)
        if module.bias is None:
            module.bias = nn.Parameter(torch.empty(len(bias), dtype=weight.dtype, device=weight.device))
            module.bias.data = module.bias.data.to(module.weight.dtype)
        module.bias.copy_(bias)


def fold_back(norm: Any, layer: Any) -> bool:
    """norm(layer(x)) into `layer`; False where it does not fit."""
    if type(layer) not in (nn.Linear, *CONVS, *TRANSPOSED):
        return False
    a, b = affine(norm)
    out = layer.out_features if type(layer) is nn.Linear else layer.out_channels
    if out != len(a):
        return False
    weight, bias = layer.weight.detach().double(), 0 if layer.bias is None else layer.bias.detach().double()
    if type(layer) in TRANSPOSED:  # [in, out / groups, …]
        per_group = a.reshape(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1)
        scaled = weight * per_group.reshape(weight.shape[0], -1)[(...,) + (None,) * (weight.ndim - 2)]
    else:
        scaled = weight * a.reshape(-1, *[1] * (weight.ndim - 1))
    set_weights(layer, scaled, bias * a + b)
    return True
