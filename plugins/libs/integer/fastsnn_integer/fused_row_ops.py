"""What stands between the projections of many tokens in integer arithmetic, a whole row at a time.

Behind a product of counts there are sums; before the next one there are counts again. Everything between is done row by
row, so it can be one pass over memory that stays in cache:

    residual   x ← x + numbers(sums);  counts of norm(x)              before q, k, v and before up, gate
    hidden     counts of act(numbers(gate)) · numbers(up)              before down
    heads      q, k, v with biases, norms of heads and rotary positions

Each is defined by the operations of `fastsnn_integer.deterministic` it is made of, and gives their bits. `project` is
the
product. Counts leave in 8 bits where all of them fit, and as float32 where one does not (or is not finite): then the
layers behind take the ordinary way, which has digits for large counts and errors for what is not finite.
"""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core.lowering import Matrix, Spikes
from fastsnn_core.ops.dispatch import Operator
from fastsnn_core.ops.event import COUNT_LINEAR
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_integer import deterministic

LARGEST = 127


@frozen(eq=False)
class Counts:
    """Counts ``[N, D]`` (int8, or float32 where 8 bits are too few), V ``[N, 1]``, and how many are not 0."""

    counts: Tensor
    v: Tensor
    active: int

    @property
    def narrow(self) -> bool:
        """Do they have 8 bits?"""
        return self.counts.dtype == torch.int8

    def spikes(self, shape: tuple[int, ...]) -> SpikeTensor:
        """As a module's input ``[*shape, D]``."""
        return SpikeTensor(self.counts.view(*shape, -1), self.v.view(*shape, 1))


@frozen(eq=False)
class Sums:
    """A projection before its scaling: y = float(total) · scale · V + bias; total ``[N, out]`` in 32 bits."""

    total: Tensor
    matrix: Matrix
    v: Tensor

    def numbers(self) -> Tensor:
        """y."""
        y = self.total.to(torch.float32) * self.matrix.scale * self.v
        return y if self.matrix.bias is None else y + self.matrix.bias


def fire(x: Tensor, rule: Spikes) -> Counts:
    """Counts of rows ``[N, D]``, as the neurons make them."""
    x = x if rule.centre is None else x - rule.centre
    size = x.abs()
    if rule.kind == "mean":
        v = (deterministic.row_sum(x, "abs") / x.shape[-1] / rule.level).clamp(1e-5, 1e4)
        counts = (x / v).clamp(-(rule.bound or torch.inf), rule.bound or torch.inf).round()
        counts = torch.where((x / v).abs() < rule.dead_zone, 0.0, counts)
    elif rule.kind == "max":
        reach = size.topk(rule.burst + 1, dim=-1).values[:, -1:]
        v = (reach * max(rule.level, 1e-3) / rule.bound).clamp(1e-5, 1e4)
        held = (x / v).clamp(-rule.bound, rule.bound)
        held, free = (torch.where(size <= reach, held, x / v) if rule.burst else held).round(), (x / v).round()
        counts = free + (held - free)
    else:
        v = size.amax(-1, keepdim=True) / LARGEST
        v = torch.where(v > 0, v, 1.0)
        counts = (x / v).round()
    if bool((counts.abs() <= LARGEST).all()):
        counts = counts.to(torch.int8)
    return Counts(counts, v, int(torch.count_nonzero(counts)))


def residual_naive(x: Tensor, add: Sums | Tensor | None, norm: Tensor | None, eps: float, rule: Spikes) -> Counts:
    """The definition: `x` ``[N, D]`` takes in `add` in place, then counts of its norm (of itself without weights)."""
    if add is not None:
        x += add.numbers() if isinstance(add, Sums) else add
    return fire(x if norm is None else deterministic.norm_naive(x, norm, eps), rule)


def hidden_naive(up: Sums, gate: Sums | None, activation: str, rule: Spikes) -> Counts:
    """The definition: counts of act(gate) · up, or of act(up)."""
    first = deterministic.FORMS[activation](up.numbers() if gate is None else gate.numbers())
    return fire(first if gate is None else first * up.numbers(), rule)


def heads_naive(
    q: Sums, k: Sums, v: Sums, width: int, norms: tuple[Tensor, Tensor] | None, eps: float, angles: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: q ``[N, H, K]``, k and v ``[N, G, K]``; `angles` are cos and sin ``[N, K/2]``, or None."""
    rows = [s.numbers().unflatten(-1, (-1, width)) for s in (q, k, v)]
    for i, by in enumerate(norms or ()):
        rows[i] = deterministic.norm_naive(rows[i].flatten(0, 1), by, eps).view(rows[i].shape)
    if angles is not None:
        cos, sin = (a[:, None].to(torch.float32) for a in angles)
        for i in range(2):
            a, b = rows[i].chunk(2, -1)
            rows[i] = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return rows[0], rows[1], rows[2]


def project_naive(counts: Counts, weight: Tensor) -> Tensor:
    """The definition: ``counts @ weightᵀ``; in 32 bits where |c| <= 127 makes sure that they hold it, else in 64."""
    total = COUNT_LINEAR(weight.device.type, counts.counts, weight)
    return total.to(torch.int32) if weight.shape[1] < 1 << 17 else total


RESIDUAL = Operator("rows_residual", residual_naive, plain=True)
HIDDEN = Operator("rows_hidden", hidden_naive, plain=True)
HEADS = Operator("rows_heads", heads_naive, plain=True)
PROJECT = Operator("rows_project", project_naive, plain=True)


def residual(x: Tensor, add: Sums | Tensor | None, norm: Tensor | None, eps: float, rule: Spikes) -> Counts:
    """`residual_naive` by the kernel in use."""
    return RESIDUAL(x.device.type, x, add, norm, eps, rule)


def hidden(up: Sums, gate: Sums | None, activation: str, rule: Spikes) -> Counts:
    """`hidden_naive` by the kernel in use."""
    return HIDDEN(up.total.device.type, up, gate, activation, rule)


def heads(
    q: Sums, k: Sums, v: Sums, width: int, norms: tuple[Tensor, Tensor] | None, eps: float, angles: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`heads_naive` by the kernel in use."""
    return HEADS(q.total.device.type, q, k, v, width, norms, eps, angles)


def project(counts: Counts, matrix: Matrix) -> Sums:
    """The product of counts of 8 bits."""
    return Sums(PROJECT(counts.counts.device.type, counts, matrix.weight), matrix, counts.v)
