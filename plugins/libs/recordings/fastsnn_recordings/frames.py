"""Events as what a network takes: frames of counts by time or by number, voxel grids; noise taken out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastsnn_recordings.events import EventError, Events


def frames(events: Events, steps: int = 0, window: int = 0) -> Tensor:
    """Counts ``[T, 2, H, W]`` (darker, brighter): `steps` equal parts of the recording, or parts of `window` µs.

    Errors (`EventError`): neither or both of them, or one below 1.
    """
    if (steps > 0) == (window > 0):
        raise EventError(f"frames take steps or a window in µs, got steps = {steps}, window = {window}")
    if not len(events):
        return torch.zeros(steps, 2, *events.size)
    since = events.t - events.t[0]
    if steps:
        place = since * steps // (int(since[-1]) + 1)
    else:
        place, steps = since // window, int(since[-1]) // window + 1
    return counted(events, place, steps)


def frames_by_count(events: Events, count: int) -> Tensor:
    """Counts ``[T, 2, H, W]`` of `count` events each; what is left over at the end is not shown.

    Errors (`EventError`): a count below 1.
    """
    if count < 1:
        raise EventError(f"a frame needs at least one event, got count = {count}")
    steps = len(events) // count
    return counted(events[: steps * count], np.arange(steps * count) // count, steps)


def counted(events: Events, place: np.ndarray, steps: int) -> Tensor:
    """How many events of each polarity fell on every pixel of every frame."""
    h, w = events.size
    index = ((place * 2 + (events.p > 0)) * h + events.y) * w + events.x
    table = np.bincount(index, minlength=steps * 2 * h * w).astype(np.float32)
    return torch.from_numpy(table.reshape(steps, 2, h, w))


def voxels(events: Events, bins: int) -> Tensor:
    """A grid ``[bins, H, W]`` of signed events, each shared by its two nearest bins in time (Zhu et al. 2019).

    Errors (`EventError`): less than one bin.
    """
    if bins < 1:
        raise EventError(f"a voxel grid has at least one bin, got {bins}")
    h, w = events.size
    grid = np.zeros(bins * h * w, np.float64)
    if len(events):
        span = max(1, int(events.t[-1] - events.t[0]))
        at = (events.t - events.t[0]) * (bins - 1) / span
        low = np.minimum(np.floor(at).astype(np.int64), bins - 1)
        sign = np.where(events.p > 0, 1.0, -1.0)
        for place, share in ((low, 1 - (at - low)), (np.minimum(low + 1, bins - 1), at - low)):
            grid += np.bincount((place * h + events.y) * w + events.x, share * sign, bins * h * w)
    return torch.from_numpy(grid.reshape(bins, h, w).astype(np.float32))


def denoised(events: Events, window: int = 10_000) -> Events:
    """Without events that no neighbouring pixel shared in the `window` µs before (Delbruck 2008)."""
    h, w = events.size
    last = np.full((h + 2, w + 2), -(1 << 62), np.int64)
    kept = np.zeros(len(events), bool)
    for n, (t, x, y) in enumerate(zip(events.t.tolist(), events.x.tolist(), events.y.tolist())):
        around = last[y : y + 3, x : x + 3]
        own = around[1, 1]
        around[1, 1] = -(1 << 62)
        kept[n] = t - around.max() <= window
        around[1, 1] = own
        last[y + 1, x + 1] = t
    return events[kept]
