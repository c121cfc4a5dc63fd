"""Longer context without training: calibrates the decay of each linear layer by zeroth-order search.

On long sequences, states leave the distribution seen in training; faster decay prevents that, at the cost of distant
tokens. Each layer has one parameter, a factor on its decay; no gradient is needed. After
MambaExtend (Azizi et al. 2025, ICLR) and, for scaling the decay itself, arXiv 2509.19633.
"""

from __future__ import annotations

import logging
from typing import Any

import attrs
import numpy as np
from torch import nn

from fastsnn_core.errors import FastSNNError
from fastsnn_train.evaluation.evaluate import position_nats
from fastsnn_train.extend.reshape import adopt, changed, layer_attentions, with_attentions, with_branches

log = logging.getLogger("fastsnn")
GRID = (0.5, 2.0, 4.0, 8.0, 16.0)
"""Factors tried for all layers together; then each layer tries half and twice its own."""


@attrs.frozen
class DecayCalibration:
    """Decay factor of every layer (1 without decay), and mean loss (early tokens, late tokens) before and after."""

    scales: tuple[float, ...]
    before: tuple[float, float]
    after: tuple[float, float]
    tried: int


def calibrate_decay(
    model: nn.Module, data: Any, *, original: int, gate: float | None = 0.02, sequences: int = 4, rounds: int = 1
) -> DecayCalibration:
    """Choose the decay factors of `model` that minimize the loss of tokens after position `original` in `data`.

    Candidates that raise the loss of the first `original` tokens by more than the fraction `gate` are rejected (None:
    none is). The best, which may be no change, is applied to the model and its spec. Raises `FastSNNError` if no layer
    has a decay.
    """
    spec: Any = model.spec
    rows = layer_attentions(spec) if hasattr(spec, "attention") else []
    mine = [i for i, a in enumerate(rows) if any(hasattr(p, "forgetting") for p in with_branches(a))]
    if not mine:
        raise FastSNNError("no layer of this model has a decay to calibrate; use mode = 'carry'")
    tried = 0

    def measure(scales: dict[int, float]) -> tuple[float, float]:
        nonlocal tried
        tried += 1
        adopt(model, with_attentions(spec, [faster(a, scales.get(i, 1.0), original) for i, a in enumerate(rows)]))
        table = position_nats(model, data, sequences)
        return float(np.nanmean(table[:, :original])), float(np.nanmean(table[:, original:]))

    best = dict.fromkeys(mine, 1.0)
    before = found = measure(best)
    limit = float("inf") if gate is None else before[0] * (1 + gate)

    def attempt(scales: dict[int, float]) -> None:
        nonlocal best, found
        early, late = measure(scales)
        if late < found[1] and early <= limit:
            best, found = scales, (early, late)

    for scale in GRID:
        attempt(dict.fromkeys(mine, scale))
    for _ in range(rounds):
        for i in mine:
            centre = best[i]
            for scale in (centre / 2, centre * 2):
                attempt(best | {i: scale})
    adopt(model, with_attentions(spec, [faster(a, best.get(i, 1.0), original) for i, a in enumerate(rows)]))
    return DecayCalibration(tuple(best.get(i, 1.0) for i in range(len(rows))), before, found, tried)


def faster(attention: Any, scale: float, length: int) -> Any:
    """An attention (or its branches) with its decay multiplied by `scale`, if it has one."""
    if scale == 1.0:
        return attention
    return changed(attention, lambda p: p.forgetting(scale, length) if hasattr(p, "forgetting") else p)
