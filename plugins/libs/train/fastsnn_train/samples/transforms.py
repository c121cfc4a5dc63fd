"""Simple changes of samples, by name: ``"shift:2"``, ``"rotate:10"``, ``"flip"``; drawn anew for every batch.

Those are augmentation: only training sees them. ``"pad"`` (or ``"pad:64"``) fills time series up to the longest, and
``"crop:64"`` cuts them, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn_console.typed import typed
from fastsnn_core.errors import ArgumentError, did_you_mean
from fastsnn_train.data.documents import DataError
from fastsnn_train.samples.sample_set import IGNORE, SampleSet, sample_array

Change = Callable[[Tensor, np.random.Generator], Tensor]
DEFAULTS = {"shift": 2.0, "rotate": 10.0, "zoom": 0.1, "flip": 0.5, "noise": 0.05, "erase": 0.25}
AFFINE = ("shift", "rotate", "zoom")


@attrs.frozen
class Transforms:
    """`length` of series (0: the longest, None: as they are); `changes` of training batches, in order."""

    length: int | None = None
    affine: dict[str, float] = attrs.field(factory=dict)
    changes: tuple[Change, ...] = ()

    def augmented(self, x: Tensor, draw: np.random.Generator) -> Tensor:
        """A training batch ``[B, …]``, changed."""
        if self.affine:
            x = moved_images(x, self.affine, draw)
        for change in self.changes:
            x = change(x, draw)
        return x


@typed
def transforms(given: str | Sequence[Any]) -> Transforms:
    """From names, or functions ``(x [B, …], numpy generator) -> x``."""
    length, affine, changes = None, {}, []
    for item in (given,) if isinstance(given, str) else given:
        if callable(item):
            changes.append(item)
            continue
        name, _, number = str(item).partition(":")
        if name not in (*DEFAULTS, "pad", "crop"):
            raise ArgumentError(f"no transform {item!r}; {did_you_mean(name, [*DEFAULTS, 'pad', 'crop'])}")
        try:
            value = float(number) if number else DEFAULTS.get(name, 0.0)
        except ValueError:
            raise ArgumentError(f"transform {item!r}: {number!r} is no number") from None
        if not math.isfinite(value) or value < 0:
            raise ArgumentError(f"transform {item!r}: the number must be at least 0")
        if name in ("pad", "crop"):
            length = int(value)
        elif name in AFFINE:
            affine[name] = value
        else:
            changes.append({"flip": flip, "noise": noise, "erase": erase}[name](value))
    return Transforms(length, affine, tuple(changes))


def moved_images(x: Tensor, how: dict[str, float], draw: np.random.Generator) -> Tensor:
    """Images ``[B, …, C, H, W]`` shifted (pixels), rotated (degrees), zoomed (share), at most so far; 0 comes in."""
    if x.ndim < 4:
        raise DataError(f"shift, rotate and zoom are for images [B, C, H, W], got {list(x.shape)}")
    b, (h, w) = len(x), x.shape[-2:]

    def some(name: str) -> Tensor:
        most = how.get(name, 0.0)
        return torch.from_numpy(draw.uniform(-most, most, b).astype(np.float32))

    turn, zoom = some("rotate") * math.pi / 180, 1 + some("zoom")
    across, down = some("shift") * 2 / w, some("shift") * 2 / h
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    grid = torch.stack([torch.stack([cos, -sin * h / w, across], 1), torch.stack([sin * w / h, cos, down], 1)], 1)
    flat = x.reshape(b, -1, h, w)
    where = F.affine_grid(grid, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, where, align_corners=False).reshape(x.shape)


def flip(share: float) -> Change:
    """Mirrored left to right, so many of them."""

    def change(x: Tensor, draw: np.random.Generator) -> Tensor:
        mirrored = torch.from_numpy(draw.random(len(x)) < share).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(mirrored, x.flip(-1), x)

    return change


def noise(size: float) -> Change:
    """Gaussian noise of this standard deviation."""

    def change(x: Tensor, draw: np.random.Generator) -> Tensor:
        return x + size * torch.from_numpy(draw.standard_normal(x.shape, dtype=np.float32))

    return change


def erase(share: float) -> Change:
    """A square of this share of the width set to 0, anywhere (DeVries & Taylor 2017, arXiv 1708.04552)."""

    def change(x: Tensor, draw: np.random.Generator) -> Tensor:
        h, w = x.shape[-2:]
        side = max(1, round(share * w))
        top, left = (torch.from_numpy(draw.integers(-side + 1, n, len(x))) for n in (h, w))
        rows, columns = torch.arange(h), torch.arange(w)
        inside = ((rows >= top[:, None]) & (rows < top[:, None] + side))[:, :, None] & (
            (columns >= left[:, None]) & (columns < left[:, None] + side)
        )[:, None]
        return x.masked_fill(inside.reshape(len(x), *[1] * (x.ndim - 3), h, w), 0.0)

    return change


def series_of(samples: SampleSet, length: int) -> SampleSet:
    """Time series ``[T_i, …]`` as one array of `length` steps (0: the longest), padded with 0 or cut at the end.

    A label for every step becomes -100 under the padding.
    """
    rows = [samples.item(i) for i in range(len(samples))]
    inputs = [np.asarray(sample_array(x, samples.name(i)), np.float32) for i, (x, _) in enumerate(rows)]
    wanted = [np.asarray(sample_array(y, f"{samples.name(i)}, target")) for i, (_, y) in enumerate(rows)]
    for i, row in enumerate(inputs):
        if row.ndim == 0 or row.shape[1:] != inputs[0].shape[1:]:
            raise DataError(
                f"{samples.name(i)} has the shape {row.shape}, {samples.name(0)} has {inputs[0].shape}; only the first "
                "dimension, time, may differ"
            )
    steps = length or max(len(row) for row in inputs)
    table = np.zeros((len(inputs), steps, *inputs[0].shape[1:]), np.float32)
    for line, row in zip(table, inputs):
        line[: len(row)] = row[:steps]
    if wanted[0].ndim == 1 and len(wanted[0]) == len(inputs[0]):
        labels = np.full((len(wanted), steps), IGNORE, np.int64)
        for line, row in zip(labels, wanted):
            line[: len(row)] = row[:steps]
    else:
        labels = np.stack(wanted)
    return attrs.evolve(samples, inputs=table, targets=labels, index=None, where=samples.where)
