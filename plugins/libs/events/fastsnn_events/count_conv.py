"""Convolutions of spike counts with INT8 weights: exact integer sums, one scaling.

    y[o, p] = float(Σ_{i, k} c[i, s p + d k - a] · W[o, i, k]) · scale[o] · V

p and k are places of the image and of the window, s the stride, d the dilation, a the padding (silent inputs beyond the
edge). Sums of integers do not depend on their order: counts at once (dense) and one event after the other are the same
bits. Weights are stored `event_major`, so that an event reads one contiguous row per place of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core.ops.dispatch import Operator
from fastsnn_events.linear import check_sums, whole
from fastsnn_modules.operands import OperandError, Operands, OperandTypeError, check_room, imported_later

Pair = tuple[int, int]


@frozen
class ConvWindow:
    """How a convolution of images walks: stride, padding and dilation by dimension, and groups of channels."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def sizes(self, image: Pair, kernel: Pair) -> Pair:
        """Height and width of what comes out."""
        high, wide = (
            (n + 2 * a - d * (k - 1) - 1) // s + 1
            for n, k, s, a, d in zip(image, kernel, self.stride, self.padding, self.dilation)
        )
        return high, wide


def count_conv_naive(counts: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, window: ConvWindow) -> Tensor:
    """The definition: sums in 64-bit integers, place after place of the window, then float(sum) · scale · V."""
    counts = whole(counts, "counts").to(torch.int64)
    check_sums(counts.to(torch.float64).abs().flatten(1).sum(1), weight)
    (sy, sx), (ay, ax), (dy, dx) = window.stride, window.padding, window.dilation
    size: Pair = (weight.shape[2], weight.shape[3])
    high, wide = window.sizes((counts.shape[2], counts.shape[3]), size)
    rows = F.pad(counts, (ax, ax, ay, ay))
    whole_weight = weight.to(torch.int64)
    sums = counts.new_zeros(len(counts), len(weight), high * wide)
    for y in range(size[0]):
        for x in range(size[1]):
            seen = rows[:, :, y * dy : y * dy + (high - 1) * sy + 1 : sy, x * dx : x * dx + (wide - 1) * sx + 1 : sx]
            parts = seen.flatten(2).chunk(window.groups, 1)
            found = [w @ part for w, part in zip(whole_weight[:, :, y, x].chunk(window.groups), parts)]
            sums += torch.cat(found, 1)
    floats = sums.view(len(counts), len(weight), high, wide).to(scale.dtype)
    return floats * scale[:, None, None] * threshold.to(scale.dtype)[:, None, None, None]


_CONV = Operands(
    "count_conv", "counts [N,C,H,W] number", "weight [O,I,K,L] int8", "scale [O] full", "threshold [N|1] full"
)


def check_count_conv(counts: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, window: ConvWindow) -> None:
    """The operands of `count_conv_naive`."""
    n = _CONV(counts, weight, scale, threshold)
    if not isinstance(window, ConvWindow):
        raise OperandTypeError(f"count_conv: window must be a ConvWindow, got {type(window).__name__}")
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        pair: Any = getattr(window, name)
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(type(k) is int and k >= least for k in pair):
            raise OperandError(f"count_conv: {name} is two whole numbers from {least} on, got {pair!r}")
    groups = window.groups
    if type(groups) is not int or groups < 1 or n["C"] != groups * n["I"] or n["O"] % groups:
        raise OperandError(
            f"count_conv: {n['C']} channels do not fit weights of {n['O']} outputs and {n['I']} inputs in "
            f"groups = {groups!r}"
        )
    if min(window.sizes((n["H"], n["W"]), (n["K"], n["L"]))) < 1 or n["K"] * n["L"] == 0:
        raise OperandError(
            f"count_conv: a window of {n['K']} x {n['L']} does not fit {n['H']} x {n['W']} "
            f"with padding {window.padding} and dilation {window.dilation}"
        )
    check_room("count_conv", "sums", n["N"], n["O"], *window.sizes((n["H"], n["W"]), (n["K"], n["L"])))


def event_major(weight: Tensor) -> Tensor:
    """The same `weight` ``[O, I, K, L]`` stored as ``[I, K, L, O]``: an event reads contiguous rows."""
    return weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def count_conv_samples() -> Iterator[tuple[Any, ...]]:
    """Silent, sparse and dense images, strides, paddings, dilations and groups, widths that no vector divides."""
    rows = (
        (0.0, 1, (1, 6, 5, 7), (5, 6, 3, 3), ConvWindow(padding=(1, 1))),
        (0.05, 1, (2, 8, 9, 11), (33, 8, 3, 3), ConvWindow(padding=(1, 1))),
        (0.5, 3, (1, 6, 8, 7), (6, 3, 3, 2), ConvWindow((2, 1), (1, 2), (1, 1), 2)),
        (1.0, 1, (2, 4, 9, 9), (8, 1, 3, 3), ConvWindow((1, 2), (2, 0), (2, 3), 4)),
        (1.0, 40_000, (1, 3, 4, 5), (17, 3, 2, 4), ConvWindow(padding=(0, 3))),
    )
    for seed, (share, largest, image, kernel, window) in enumerate(rows):
        draw = torch.Generator().manual_seed(seed)
        counts = torch.randint(1, largest + 1, image, generator=draw) * (torch.rand(image, generator=draw) < share)
        counts *= torch.randint(0, 2, image, generator=draw) * 2 - 1 if seed % 2 else 1
        weight = torch.randint(-127, 128, kernel, generator=draw).to(torch.int8)
        scale, threshold = torch.rand(kernel[0], generator=draw) + 0.1, torch.rand(image[0], generator=draw) + 0.1
        for kind in (torch.float32, torch.int64):
            yield counts.to(kind), event_major(weight), scale, threshold, window
        yield counts.float(), weight, scale, threshold[:1], attrs.evolve(window)


COUNT_CONV = Operator(
    "count_conv", count_conv_naive, check=check_count_conv,
    samples=imported_later("fastsnn_events.count_conv.count_conv_samples"),
)  # fmt: skip
