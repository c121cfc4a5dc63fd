"""Dead, saturated and outlier channels of a site, and what to do about each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastsnn_core.probe import Record
from fastsnn_core.subject import Data

FULL, FAR, LISTED = 0.9, 8.0, 12
FIXES = {
    "dead": "Never spiked on this input. If a longer text says the same, remove the channel (its weight row is only "
    "memory), or lower the site's threshold (a higher k, a lower theta) where it ought to speak.",
    "saturated": "Stands at the neuron's limit whenever it spikes, so larger values are lost: one step more (a higher "
    "limit), or a higher threshold (a lower k).",
    "outlier": "Spikes far more than its neighbours and sets the site's threshold for all of them: scale it into the "
    "weights (fastsnn convert --calibration), or let it burst in a step of its own.",
    "constant": "Always far from zero, with the same sign: centre the site (centred = [...] in the spec), and the "
    "constant goes into the bias behind it.",
}


def channel_rows(t: Tensor) -> Tensor:
    """``[…, D]`` or ``[B, C, H, W]`` as ``[D, entries]``."""
    axis = 1 if t.ndim > 3 else t.ndim - 1
    return t.movedim(axis, 0).reshape(t.shape[axis], -1)


def problems(record: Record) -> list[Data]:
    """``[{"kind", "count", "channels", "fix", "says"}]`` over everything that was run; channels of at most a dozen."""
    counts = channel_rows(record.spikes.counts.detach().float())
    magnitude = counts.abs()
    fires = (counts != 0).sum(1)
    found: dict[str, Tensor] = {"dead": (fires == 0).nonzero().flatten()}
    limit = getattr(record.module, "hi", getattr(record.module, "bound", None))
    if isinstance(limit, int | float) and math.isfinite(limit) and limit > 1:
        full = (magnitude >= limit).sum(1)
        found["saturated"] = ((fires > 1) & (full > FULL * fires)).nonzero().flatten()
    mean = magnitude.mean(1)
    usual = float(mean[fires > 0].median()) if bool((fires > 0).any()) else 0.0
    far = (mean > FAR * max(usual, 1e-9)) & (mean > 1.0)
    constant = far & (counts.mean(1).abs() > 0.9 * mean)
    found["constant"], found["outlier"] = constant.nonzero().flatten(), (far & ~constant).nonzero().flatten()
    rows = []
    for kind, channels in found.items():
        if len(channels):
            order = channels[torch.argsort(mean[channels], descending=True, stable=True)][:LISTED].tolist()
            rows.append({"kind": kind, "count": len(channels), "channels": order, "fix": FIXES[kind],
                         "factor": round(float(mean[channels].max()) / usual, 1) if usual else None})  # fmt: skip
    return rows
