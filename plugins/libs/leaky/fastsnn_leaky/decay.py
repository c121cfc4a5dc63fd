"""A leaky sum over time, y_t = β · keep_t · y_{t-1} + x_t: `decayed` by doubling, for training; `decayed_in_order`.

Doubling takes log₂ T passes, not T, and adds in an order that depends on where a sequence is cut: the same sum but for
rounding. Inference goes in order, so that a prompt in pieces, or from a cache, gives the bits of the whole.

The recurrence is linear, so pairs (a, b) of "what is left" and "what was added" compose associatively (Hillis and
Steele 1986): b_t ← b_t + a_t b_{t-s}, a_t ← a_t a_{t-s}, for s = 1, 2, 4, … Gradients are autograd's, to β too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastsnn_modules.over_time import exporting, over_time


def decayed(x: Tensor, start: Tensor, beta: Tensor | float, reset: Tensor | None = None) -> Tensor:
    """y ``[B,T,…]`` of ``x [B,T,…]`` from ``start [B,…]``; β a number or one per channel; `reset` begins anew."""
    b, t = x.shape[:2]
    if not t:
        return x
    left = torch.as_tensor(beta, dtype=x.dtype, device=x.device).expand(x.shape)
    if reset is not None:
        left = left * (~reset).to(x.dtype).reshape(b, t, *[1] * (x.ndim - 2))
    found = torch.cat([x[:, :1] + left[:, :1] * start[:, None].to(x.dtype), x[:, 1:]], 1)
    step = 1
    while step < t:
        found = torch.cat([found[:, :step], found[:, step:] + left[:, step:] * found[:, :-step]], 1)
        left = torch.cat([left[:, :step], left[:, step:] * left[:, :-step]], 1)
        step *= 2
    return found


def decayed_in_order(x: Tensor, start: Tensor, beta: Tensor | float, reset: Tensor | None = None) -> Tensor:
    """The definition, a loop over T: any cut of the sequence gives the same bits."""
    if exporting(x) and reset is None:

        def add(old: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            new = beta * old[0] + now[0]
            return (new,), (new,)

        return over_time(add, (start.to(x.dtype),), (x,))[1][0]
    y, rows = start if start.dtype == torch.float64 else start.to(x.dtype), []
    for t in range(x.shape[1]):
        if reset is not None:
            y = torch.where(reset[:, t].reshape(-1, *[1] * (y.ndim - 1)), torch.zeros_like(y), y)
        y = beta * y + x[:, t]
        rows.append(y)
    return torch.stack(rows, 1) if rows else x
