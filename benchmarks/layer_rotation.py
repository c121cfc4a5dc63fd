"""LaRoSA with a rotation of its own for every layer, as a row of `real_model.py`: what it silences, less what it costs.

Each layer's two norms give their output on the layer's own principal axes. In a model that runs so, the residual stream
is on these axes and a product ``[D,D]`` leads from each layer's to the next one's: D² weights a layer, read for every
token, which `paid` counts against the silent bytes (9.4 % of a layer of SmolLM2-135M). The values' rotations are
free. Here the product stands behind the norms, which is the same function and the same spikes; no bundle has a place
for it, so this is no criterion of `fastsnn tune`; the rotations that weights take over are ("larosa").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_tune.criteria import Criterion
from fastsnn_tune.rotation import axes, fold_gains, moments, norm_readers, turn_values


class TurnedNorm(nn.Module):
    """(norm(x) R) ∘ weight."""

    def __init__(self, norm: nn.Module, turn: Tensor) -> None:
        super().__init__()
        self.norm, self.weight = norm, nn.Parameter(torch.ones(len(turn)), requires_grad=False)
        self.register_buffer("turn", turn)

    def forward(self, x: Tensor) -> Tensor:
        """On the layer's axes."""
        return (self.norm(x) @ self.turn) * self.weight


@torch.no_grad()
def layers_rotated(model: Any, tokens: Tensor) -> Any:
    """`model`, changed in place, with every layer on its own axes."""
    fold_gains(model)
    seen = moments(model, tokens)
    for layer, moment in zip(model.layers, seen):
        turn = axes(moment.attention + moment.feedforward)
        for _, site, readers in norm_readers(layer):
            for reader in readers:
                reader.weight.copy_(reader.weight @ turn)
            if site.centre is not None:
                site.centre.copy_(site.centre @ turn)
        layer.attention_norm = TurnedNorm(layer.attention_norm, turn)
        layer.feedforward_norm = TurnedNorm(layer.feedforward_norm, turn)
    turn_values(model, seen)
    return model


LAYERED = Criterion("larosa_layers", "larosa, axes of every layer, their products counted", prepare=layers_rotated)


def paid(model: Any, weights: int) -> float:
    """Share of `weights` that the products between layers add."""
    norms = [layer.attention_norm for layer in model.layers]
    return sum(norm.turn.numel() for norm in norms if isinstance(norm, TurnedNorm)) / weights
