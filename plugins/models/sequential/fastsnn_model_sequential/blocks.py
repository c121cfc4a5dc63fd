"""Blocks of deep spiking networks: a branch beside its shortcut, and self-attention whose factors are spikes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_conversion.spike_layers import counts_of
from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_core.component import Neuron
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import SpikeTensor, densify
from fastsnn_model_sequential.modules import AnyRankBatchNorm


class ResidualBlock(nn.Module):
    """y = f(x) + s(x), or of spikes f(x) ∧ s(x), ¬f(x) ∧ s(x);  s the identity where there is no `shortcut`.

    ``[N, …] -> [N, …]``. A branch that ends in spikes makes the spike-element-wise block of SEW-ResNet (Fang et al.
    2021, arXiv 2102.04159): where both sides spike with one threshold, counts are joined and what follows still reads
    counts. A branch that begins with spikes and ends in numbers makes the membrane shortcut of MS-ResNet (Hu et al.
    2021, arXiv 2112.08954).

    Errors (FastSNNError): "and" and "iand" of what are no spikes of one threshold.
    """

    reads_spikes = True

    def __init__(self, part: nn.Module, shortcut: nn.Module | None = None, how: str = "add") -> None:
        super().__init__()
        self.part, self.shortcut, self.how = part, shortcut, how

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"how={self.how}"

    def forward(self, x: Any) -> Any:
        """The branch, joined with the shortcut."""
        found = run_nested(self.part, x)
        beside = x if self.shortcut is None else run_nested(self.shortcut, x)
        if isinstance(found, SpikeTensor) and isinstance(beside, SpikeTensor) and share_one_threshold(found, beside):
            return SpikeTensor(joined_counts(counts_of(found), counts_of(beside), self.how), found.scale)
        if self.how != "add":
            raise FastSNNError(
                f'a residual with how = "{self.how}" joins spikes of one threshold: end the branch and what comes in '
                'with neurons of one fixed threshold, as { kind = "lif", fixed = true }'
            )
        return densify(found) + densify(beside)


def run_nested(network: nn.Module, x: Any) -> Any:
    """A nested network of spikes or numbers: its layers, which see spikes as such."""
    body: Any = getattr(network, "body", None)
    return network(densify(x)) if body is None else body(x)


def share_one_threshold(a: SpikeTensor, b: SpikeTensor) -> bool:
    """Do both count in one threshold, a constant?"""
    if a.scale.numel() != 1 or b.scale.numel() != 1 or a.scale.requires_grad or b.scale.requires_grad:
        return False
    return not torch.compiler.is_compiling() and bool(a.scale.reshape(()) == b.scale.reshape(()))


def joined_counts(f: Tensor, s: Tensor, how: str) -> Tensor:
    """Counts of a branch and of its shortcut."""
    if how == "add":
        return f + s
    return f * s if how == "and" else (1 - f) * s


class SpikingAttention(nn.Module):
    """Spiking self-attention (SSA): y = SN(BN(W_o SN(scale · Q Kᵀ V))), with Q, K, V = SN(BN(W x)) spikes, per head.

    ``x [N, C, *places] -> SpikeTensor [N, C, *places]``: places of one step see each other, steps do not, and there is
    no softmax. Q, K and V are 0 and 1, so Q Kᵀ V is whole numbers and its order is free: Q (Kᵀ V) where there are more
    places than channels of a head. `scale` is in thresholds of the neuron behind it: 1/4 is the published 1/8 at the
    published threshold 1/2. A neuron's state is kept for each place. Zhou et al. 2023 (Spikformer, arXiv 2209.15425).
    """

    reads_spikes = True
    names = ("query", "key", "value", "out")

    def __init__(self, features: int, heads: int, neuron: Neuron, scale: float = 0.25, norms: bool = True) -> None:
        super().__init__()
        if features % heads:
            raise FastSNNError(f"spiking_attention: {features} channels cannot be shared evenly by {heads} heads")
        self.features, self.heads, self.component = features, heads, neuron
        self.scale, self.normed = scale, norms
        self.linears = nn.ModuleDict({n: nn.Linear(features, features, bias=not norms) for n in self.names})
        self.norms = nn.ModuleDict({n: AnyRankBatchNorm(features) if norms else nn.Identity() for n in self.names})
        self.spikes = nn.ModuleDict({n: TimeFoldedSite.of(neuron, features) for n in (*self.names, "mixed")})

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.features} channels, heads={self.heads}, scale={self.scale:g}"

    def project(self, name: str, x: Any) -> Any:
        """``[N, L, C] ->`` spikes of it: linear, batch norm over samples and places, neuron."""
        found = self.linears[name](x)
        return self.spikes[name](self.norms[name](found.flatten(0, 1)).view_as(found))

    def forward(self, x: Any) -> Any:
        """Spikes of every place."""
        shape = x.shape
        rows = move(x, lambda t: t.flatten(2).transpose(1, 2))
        factor: Any = self.scale
        parts = []
        for name in self.names[:3]:
            spikes = self.project(name, rows)
            if isinstance(spikes, SpikeTensor) and spikes.scale.numel() == 1:  # whole numbers: sums are exact
                factor, numbers = factor * spikes.scale.reshape(()), counts_of(spikes)
            else:
                numbers = densify(spikes)
            parts.append(numbers.unflatten(-1, (self.heads, -1)).transpose(1, 2))  # [N, H, L, C / H]
        q, k, v = parts
        mixed = q @ (k.mT @ v) if q.shape[-2] > q.shape[-1] else (q @ k.mT) @ v
        mixed = factor * mixed.transpose(1, 2).flatten(2)
        out = self.project("out", self.spikes["mixed"](mixed))
        return move(out, lambda t: t.transpose(1, 2).reshape(shape))


def move(x: Any, change: Any) -> Any:
    """`change` of numbers, or of counts and scales alike."""
    return x.rearrange(change) if isinstance(x, SpikeTensor) else change(x)
