"""Thresholds that learn while a model is healed: gradients pass through them, and k moves from site to site.

A neuron treats its threshold V as a constant of its input. While a model learns to live with coarse counts it should
know that V follows the input (V = mean|x| / k, or max|x| · clip / (2^S - 1)): an outlier that shrinks makes all other
channels finer. With c = round(x / V) the value c V has, with counts passed straight through,

    d(c V)  =  dx + (c - x / V) dV

which is LSQ's gradient (Esser et al. 2020, arXiv 1902.08153) with V a function of x and k. Values stay what they are,
bit for bit. Where every site has a k, they are trained too, and their mean over all channels is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_convert.calibrate import threshold
from fastsnn_core import SpikeTensor
from fastsnn_core.site import sites

LEAST = 0.1
"""Of the mean k: no site's k falls below it."""


class Followed(torch.autograd.Function):
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


class Thresholds:
    """What learns at the sites of a model, between `on` and `off`."""

    def __init__(self, model: nn.Module) -> None:
        found = [(site.neuron, site.features) for site in sites(model).values()]
        self.neurons: list[Any] = [neuron for neuron, _ in found if follows(neuron)]
        has_k = [isinstance(getattr(neuron, "k", None), Tensor) for neuron in self.neurons]
        self.with_k = self.neurons if len(self.neurons) == len(found) and all(has_k) else []
        self.channels = torch.tensor([float(size) for _, size in found]) if self.with_k else torch.zeros(0)
        self.fixed = [neuron for neuron in self.with_k if "k" in neuron._buffers]
        self.wanted = float((self.ks() * self.channels).sum())

    def ks(self) -> Tensor:
        """k of every site."""
        return torch.tensor([float(neuron.k.detach()) for neuron in self.with_k])

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """While the block runs gradients pass through thresholds, and k is a parameter."""
        handles = []
        for neuron in self.neurons:
            held: list[Tensor] = []
            handles.append(neuron.register_forward_pre_hook(before(held)))
            handles.append(neuron.register_forward_hook(after(held)))
        for neuron in self.fixed:
            neuron.k = nn.Parameter(neuron._buffers.pop("k"))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for neuron in self.fixed:
                neuron.register_buffer("k", neuron._parameters.pop("k").detach())

    @torch.no_grad()
    def keep_mean(self) -> None:
        """Scale every k so that their mean over channels is what it was, none far below it."""
        if not self.with_k:
            return
        k, least = self.ks(), LEAST * self.wanted / float(self.channels.sum())
        for _ in range(3):
            k = k.clamp_min(least)
            k = k * (self.wanted / float((k * self.channels).sum()))
        for neuron, value in zip(self.with_k, k):
            neuron.k.copy_(value)


def follows(neuron: Any) -> bool:
    """Does this neuron's threshold follow its input, and is every count passed straight through?"""
    straight = getattr(neuron, "derivative", None) is None and not getattr(neuron, "sparser", False)
    return straight and threshold(torch.ones(1, 1, 1 + int(getattr(neuron, "burst", 0))), neuron) is not None


def before(held: list[Tensor]) -> Any:
    """Keeps the input, and lets the neuron count without a graph."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        held.append(args[0])
        return (args[0].detach(), *args[1:])

    return hook


def after(held: list[Tensor]) -> Any:
    """The same spikes with gradients."""

    def hook(neuron: Any, _: Any, out: tuple[SpikeTensor, Any]) -> tuple[SpikeTensor, Any] | None:
        x, (spikes, state) = held.pop(), out
        if not torch.is_grad_enabled():
            return None
        x = x.float()
        v = threshold(x, neuron)
        assert v is not None
        k = getattr(neuron, "k", None)
        if isinstance(k, nn.Parameter):
            v = v * (k.detach() / k)
        scale = spikes.scale.detach()
        v = scale + (v - v.detach())  # the neuron's own value
        clamped = neuron.bound != float("inf") or hasattr(neuron, "burst")
        return SpikeTensor(Followed.apply(x, v, spikes.counts.detach(), clamped), v), state

    return hook
