"""Longer context without training: how fast each linear layer forgets, found by trying (zeroth order).

States that were trained on short sequences leave their distribution on long ones; forgetting faster keeps them there,
at the price of what lies far back. Each layer has one number, a factor on its decay; no gradient is needed. After
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
    """Factors on every layer's decay (1 where it has none), and mean nats before and after: early and late tokens."""

    scales: tuple[float, ...]
    before: tuple[float, float]
    after: tuple[float, float]
    tried: int


def calibrate_decay(
    model: nn.Module, data: Any, *, original: int, gate: float | None = 0.02, sequences: int = 4, rounds: int = 1
) -> DecayCalibration:
    """Set the decays of `model` so that tokens behind `original` are predicted best on blocks of `data`.

    A setting counts only where the first `original` tokens get at most `gate` worse (None: any). The best stays in the
    model and in its spec; where nothing helps, nothing changes.
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
    """An attention (or its branches) that forgets by `scale` faster, where it can."""
    if scale == 1.0:
        return attention
    return changed(attention, lambda p: p.forgetting(scale, length) if hasattr(p, "forgetting") else p)
