"""Fused row kernels between the INT8 products of a prompt: dequantise, residual, RMSNorm, activation, requantise.

Behind a product of counts there are integer sums; before the next one there are counts again. Everything between is
done row by row, so it can be one pass over memory that stays in cache:

    residual   x ← x + dequantised sums;  counts of norm(x)            before q, k, v and before up, gate
    hidden     counts of act(gate) · up                                before down
    heads      q, k, v with biases, norms per head and rotary positions

Each naive twin is made of the modules' own operations (the site's neuron, `fastsnn_integer.deterministic`), and
kernels give its bits. `project` is the product. Counts leave in 8 bits where all of them fit, and as float32 where one
does not (or is not finite): then the layers behind take the ordinary way, which has digits for large counts and errors
for what is not finite.
"""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core.lowering import MatrixForm, NormForm, SiteForm
from fastsnn_core.ops.dispatch import Operator
from fastsnn_core.ops.event import COUNT_LINEAR
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_integer import deterministic, reference

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
    matrix: MatrixForm
    v: Tensor

    def dequantised(self) -> Tensor:
        """y ``[N, out]``."""
        y = self.total.to(torch.float32) * self.matrix.scale * self.v
        return y if self.matrix.bias is None else y + self.matrix.bias


def fire(x: Tensor, site: SiteForm) -> Counts:
    """Counts of rows ``[N, D]``, made by the site's neuron itself."""
    counts, v = reference.fire(x, site)
    if bool((counts.abs() <= LARGEST).all()):
        counts = counts.to(torch.int8)
    return Counts(counts, v, int(torch.count_nonzero(counts)))


def residual_naive(x: Tensor, add: Sums | Tensor | None, norm: NormForm | None, site: SiteForm) -> Counts:
    """The definition: `x` ``[N, D]`` takes in `add` in place, then counts of its norm (of itself without one)."""
    if add is not None:
        x += add.dequantised() if isinstance(add, Sums) else add
    return fire(x if norm is None else deterministic.norm_naive(x, norm.weight, norm.eps), site)


def hidden_naive(up: Sums, gate: Sums | None, activation: str, site: SiteForm) -> Counts:
    """The definition: counts of act(gate) · up, or of act(up)."""
    first = deterministic.FORMS[activation]((up if gate is None else gate).dequantised())
    return fire(first if gate is None else first * up.dequantised(), site)


def heads_naive(
    q: Sums, k: Sums, v: Sums, width: int, norms: tuple[NormForm | None, NormForm | None], angles: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: q ``[N, H, K]``, k and v ``[N, G, K]``; `angles` are cos and sin ``[N, K/2]``, or None."""
    rows = [s.dequantised().unflatten(-1, (-1, width)) for s in (q, k, v)]
    for i, norm in enumerate(norms):
        if norm is not None:
            rows[i] = deterministic.norm_naive(rows[i].flatten(0, 1), norm.weight, norm.eps).view(rows[i].shape)
    if angles is not None:
        cos, sin = (a.to(torch.float32) for a in angles)
        rows[:2] = [reference.rotate(x, cos, sin) for x in rows[:2]]
    return rows[0], rows[1], rows[2]


def project_naive(counts: Counts, weight: Tensor) -> Tensor:
    """The definition: ``counts @ weightᵀ``; in 32 bits where |c| <= 127 makes sure that they hold it, else in 64."""
    total = COUNT_LINEAR(weight.device.type, counts.counts, weight)
    return total.to(torch.int32) if weight.shape[1] < 1 << 17 else total


def _samples(name: str) -> Any:
    """Inputs for the conformance kit, made when asked for."""

    def make() -> Any:
        from fastsnn_integer import samples

        return getattr(samples, name)()

    return make


RESIDUAL = Operator("rows_residual", residual_naive, plain=True, samples=_samples("residual"))
HIDDEN = Operator("rows_hidden", hidden_naive, plain=True, samples=_samples("hidden"))
HEADS = Operator("rows_heads", heads_naive, plain=True, samples=_samples("heads"))
PROJECT = Operator("rows_project", project_naive, plain=True, samples=_samples("project"))


def residual(x: Tensor, add: Sums | Tensor | None, norm: NormForm | None, site: SiteForm) -> Counts:
    """`residual_naive` by the kernel in use."""
    return RESIDUAL(x.device.type, x, add, norm, site)


def hidden(up: Sums, gate: Sums | None, activation: str, site: SiteForm) -> Counts:
    """`hidden_naive` by the kernel in use."""
    return HIDDEN(up.total.device.type, up, gate, activation, site)


def heads(
    q: Sums, k: Sums, v: Sums, width: int, norms: tuple[NormForm | None, NormForm | None], angles: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`heads_naive` by the kernel in use."""
    return HEADS(q.total.device.type, q, k, v, width, norms, angles)


def project(counts: Counts, matrix: MatrixForm) -> Sums:
    """The product of counts of 8 bits."""
    return Sums(PROJECT(counts.counts.device.type, counts, matrix.weight), matrix, counts.v)
