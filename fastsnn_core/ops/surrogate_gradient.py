"""Counts from membrane values, with a stand-in derivative.

    count(u) = round(clip(u, lo, hi))        half to even; or 1[u >= 1] with `heaviside`

The derivative is one of three closed forms, written with the distance d(u) to the interval between the first and the
last threshold (0.5 + lo and hi - 0.5 when rounding; 1 and 1 for a Heaviside step):

    identity   1
    window     1[d(u) <= alpha]                              (alpha = 0.5 gives lo <= u <= hi: I-LIF, SpikeYOLO)
    atan       (alpha / 2) / (1 + (pi alpha d(u) / 2)^2)      (SpikingJelly's ATan for a Heaviside step)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError

FORMS = ("identity", "window", "atan")


def thresholds(lo: float, hi: float, heaviside: bool) -> tuple[float, float]:
    """First and last threshold of the count."""
    return (1.0, 1.0) if heaviside else (lo + 0.5, hi - 0.5)


def derivative(u: Tensor, form: str, alpha: float, first: float, last: float) -> Tensor:
    """The closed forms above, elementwise on `u` (in thresholds)."""
    if form == "identity":
        return torch.ones_like(u)
    distance = (first - u).clamp_min(0) + (u - last).clamp_min(0)
    if form == "window":
        return (distance <= alpha).to(u.dtype)
    if form == "atan":
        return (alpha / 2) / (1 + (math.pi / 2 * alpha * distance) ** 2)
    raise FastSNNError(f"no surrogate form {form!r}; there are {', '.join(FORMS)}")


class _Count(torch.autograd.Function):
    """Forward `count`, backward ``grad · derivative(u)``."""

    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(u: Tensor, lo: float, hi: float, heaviside: bool, slope: Callable[[Tensor], Tensor]) -> Tensor:
        return (
            torch.where(u >= 1, 1.0, torch.where(u < 1, 0.0, u)).to(u.dtype) if heaviside else u.clamp(lo, hi).round()
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.slope = inputs[4]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (u,) = ctx.saved_tensors
        return grad * ctx.slope(u), None, None, None, None


def count(u: Tensor, lo: float, hi: float, *, heaviside: bool = False, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """Counts of `u` (any shape, in thresholds); ``slope(u)`` stands in for the derivative."""
    return _Count.apply(u, lo, hi, heaviside, slope)
