"""Gradients through thresholds, while a model is healed.

A neuron treats its threshold V as a constant of its input. While a model learns to live with coarse counts it should
know that V follows the input (V = mean|x| / k, or max|x| · clip / (2^S - 1)): an outlier that shrinks makes all other
channels finer. With c = round(x / V) the value c V has, with counts passed straight through,

    d(c V)  =  dx + (c - x / V) dV

which is LSQ's gradient (Esser et al. 2020, arXiv 1902.08153) with V a function of x. Values stay what they are, bit for
bit. k itself stays as it was shared out: trained by Adam with its mean kept, every k became 1 (benchmarks/NOTES.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_convert.language.balance import threshold
from fastsnn_core import SpikeTensor
from fastsnn_core.site import sites


class LsqCounts(torch.autograd.Function):
    """The counts of ``x / v``, made elsewhere, with gradients of x and v."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, counts: Tensor, clamped: bool) -> Tensor:
        """Counts as they are."""
        ctx.save_for_backward(x, v, *([counts] if clamped else []))
        return counts.view_as(counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """dx / v, and -u dv / v with u = x / v (the count itself where it is clamped)."""
        x, v, *counts = ctx.saved_tensors
        into = grad / v
        if counts:
            u = x / v
            return into, -(into * torch.where((u - counts[0]).abs() <= 0.5, u, counts[0])).sum(-1, True), None, None
        return into, -(into * x).sum(-1, True) / v, None, None


@contextlib.contextmanager
def lsq_gradients(model: nn.Module) -> Iterator[None]:
    """While the block runs gradients pass through the thresholds of every site's neuron that has such a rule."""
    handles = []
    for site in sites(model).values():
        if follows_input(site.neuron):
            held: list[Tensor] = []
            handles.append(site.neuron.register_forward_pre_hook(before(held)))
            handles.append(site.neuron.register_forward_hook(with_gradients(held)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def follows_input(neuron: Any) -> bool:
    """Does this neuron's threshold follow its input, and is every count passed straight through?"""
    straight = getattr(neuron, "derivative", None) is None and not getattr(neuron, "sparser", False)
    learnt = any(p.requires_grad for p in neuron.parameters())  # k or clip: their gradient is the neuron's own
    return (
        straight
        and not learnt
        and threshold(torch.ones(1, 1, 1 + int(getattr(neuron, "burst", 0))), neuron) is not None
    )


def before(held: list[Tensor]) -> Any:
    """Keeps the input, and lets the neuron count without a graph."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        held.append(args[0])
        return (args[0].detach(), *args[1:])

    return hook


def with_gradients(held: list[Tensor]) -> Any:
    """The same spikes with gradients."""

    def hook(neuron: Any, _: Any, out: tuple[SpikeTensor, Any]) -> tuple[SpikeTensor, Any] | None:
        x, (spikes, state) = held.pop(), out
        if not torch.is_grad_enabled():
            return None
        x = x.float()
        v = threshold(x, neuron)
        assert v is not None
        scale = spikes.scale
        v = scale + (v - v.detach())  # the neuron's own value
        clamped = neuron.bound != float("inf") or hasattr(neuron, "burst")
        return SpikeTensor(LsqCounts.apply(x, v, spikes.counts.detach(), clamped), v), state

    return hook
