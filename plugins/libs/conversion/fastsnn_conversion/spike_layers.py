"""Layers that take spikes as spikes: pooling, flattening and dropout on counts.

    flatten   (c, V) -> (flat c, V)                               the same spikes in another shape
    avg pool  (c, V) -> (Σ_window c, V / window)                  exact: a sum of counts is a count
    max pool  (c, V) -> (max_window c, V)                         exact where the window shares one V > 0
    dropout   (c, V) -> (mask · c, V / (1 - p))                   in training

Ordinary tensors go through the same layers unchanged in meaning. Shapes as the layers of `torch.nn`, batch first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import SpikeTensor, densify
from fastsnn_modules.max_pool import max_pool_2d

MAX_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_POOLS: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


READERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Identity,
)  # fmt: skip


def reads_spikes(module: nn.Module) -> bool:
    """Does a module take a SpikeTensor as such? Projections do, and modules that say so: ``reads_spikes = True``."""
    return isinstance(module, READERS) or bool(getattr(module, "reads_spikes", False))


def fed(module: nn.Module, x: Any) -> Any:
    """`x` as the module wants it: spikes for those who read them, their value for all others."""
    return x if reads_spikes(module) else densify(x)


def shared_scale(spikes: SpikeTensor, dims: int, what: str) -> Tensor:
    """The scale, when it is one number over the last `dims` dimensions; an error that says so otherwise."""
    if any(n != 1 for n in spikes.scale.shape[-dims:]):
        raise FastSNNError(f"{what} of spikes needs one threshold per window, got scale {tuple(spikes.scale.shape)}")
    return spikes.scale


def counts_of(spikes: SpikeTensor) -> Tensor:
    """Counts as floats: torch pools no integers."""
    return spikes.counts if spikes.counts.is_floating_point() else spikes.counts.to(spikes.scale.dtype)


def one_size(size: Any) -> int:
    """A size of one dimension, given alone or in a tuple."""
    return size[0] if isinstance(size, tuple) else size


class Flatten(nn.Module):
    """``[N, …] -> [N, D]``."""

    reads_spikes = True

    def forward(self, x: Any) -> Any:
        """The same numbers or spikes in one dimension."""
        if not isinstance(x, SpikeTensor):
            return x.flatten(1)
        scale = x.scale
        if scale.ndim == x.ndim and scale.numel() == scale.shape[0]:
            scale = scale.reshape(-1, 1)
        elif scale.ndim:
            scale = scale.expand(x.shape).flatten(1)
        return SpikeTensor(x.counts.flatten(1), scale)


class Unflatten(nn.Module):
    """``[N, D] -> [N, *shape]``."""

    reads_spikes = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"shape={self.shape}"

    def forward(self, x: Any) -> Any:
        """The same numbers or spikes in more dimensions."""
        if not isinstance(x, SpikeTensor):
            return x.unflatten(1, self.shape)
        scale = x.scale
        if scale.ndim == x.ndim and scale.shape[-1] == 1:
            scale = scale.unflatten(1, (1,) * len(self.shape))
        elif scale.ndim:
            scale = scale.expand(x.shape).unflatten(1, self.shape)
        return SpikeTensor(x.counts.unflatten(1, self.shape), scale)


class MaxPool(nn.Module):
    """Maximum over windows of the last `dims` dimensions."""

    reads_spikes = True

    def __init__(self, dims: int, kernel: Any, stride: Any, padding: Any = 0, dilation: Any = 1) -> None:
        super().__init__()
        self.dims, self.kernel, self.stride, self.padding, self.dilation = dims, kernel, stride, padding, dilation

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.dims}d, kernel={self.kernel}, stride={self.stride}, padding={self.padding}"

    def side_by_side(self) -> tuple[int, int] | None:
        """The window, where windows of an image touch and do not overlap; else None."""
        kernel, stride, padding, dilation = (
            (size, size) if isinstance(size, int) else tuple(size) * (2 // len(size))
            for size in (self.kernel, self.stride or self.kernel, self.padding, self.dilation)
        )
        return kernel if kernel == stride and padding == (0, 0) and dilation == (1, 1) else None

    def pool(self, x: Tensor) -> Tensor:
        """On numbers."""
        if self.dims == 2 and (window := self.side_by_side()) is not None:
            return max_pool_2d(x, window)
        return MAX_POOLS[self.dims](x, self.kernel, self.stride, self.padding, self.dilation)

    def forward(self, x: Any) -> Any:
        """On numbers, or on counts."""
        if not isinstance(x, SpikeTensor):
            return self.pool(x)
        return SpikeTensor(self.pool(counts_of(x)), shared_scale(x, self.dims, "max pooling"))


class AvgPool(nn.Module):
    """Mean over windows of the last `dims` dimensions; padding counts as zeros."""

    reads_spikes = True

    def __init__(self, dims: int, kernel: Any, stride: Any, padding: Any = 0) -> None:
        super().__init__()
        self.dims, self.kernel, self.stride, self.padding = dims, kernel, stride, padding
        self.window = math.prod(kernel) if isinstance(kernel, tuple) else kernel**dims

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.dims}d, kernel={self.kernel}, stride={self.stride}, padding={self.padding}"

    def forward(self, x: Any) -> Any:
        """On numbers, or as sums of counts."""
        pool = AVG_POOLS[self.dims]
        if not isinstance(x, SpikeTensor):
            return pool(x, self.kernel, self.stride, self.padding)
        scale = shared_scale(x, self.dims, "average pooling") / self.window
        if self.dims == 1:  # has no divisor of its own
            kernel, stride, padding = map(one_size, (self.kernel, self.stride, self.padding))
            sums = F.avg_pool2d(counts_of(x)[:, :, None], (1, kernel), (1, stride), (0, padding), divisor_override=1)
            return SpikeTensor(sums[:, :, 0], scale)
        return SpikeTensor(pool(counts_of(x), self.kernel, self.stride, self.padding, divisor_override=1), scale)


class AdaptiveAvgPool(nn.Module):
    """Mean over equal windows, as many as `size` says; numbers also where the windows are not equal."""

    reads_spikes = True

    def __init__(self, dims: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.dims, self.size = dims, size

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.dims}d, size={self.size}"

    def forward(self, x: Any) -> Any:
        """On numbers, or as sums of counts."""
        if not isinstance(x, SpikeTensor):
            return ADAPTIVE_POOLS[self.dims](x, self.size)
        shape = tuple(x.shape[-self.dims :])
        if any(n % m for n, m in zip(shape, self.size)):
            raise FastSNNError(f"windows over {shape} to {self.size} are not equal, so sums of spikes are no average")
        kernel = tuple(n // m for n, m in zip(shape, self.size))
        return AvgPool(self.dims, kernel, kernel)(x)


class AdditiveMask(nn.Module):
    """A mask of `nn.MultiheadAttention` as scores to be added: boolean ones (True: not allowed) become 0 and -inf.

    ``forward(mask, like)``: mask ``[L, S]`` or ``[N·H, L, S]`` -> the same, or ``[N, H, L, S]``; with `keys`, a padding
    mask ``[N, S] -> [N, 1, 1, S]``. The result has the type of `like`.
    """

    def __init__(self, heads: int, keys: bool = False) -> None:
        super().__init__()
        self.heads, self.keys = heads, keys

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"heads={self.heads}, keys={self.keys}"

    def forward(self, mask: Tensor, like: Tensor) -> Tensor:
        """The scores to be added."""
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, float("-inf"))
        mask = mask.to(like.dtype)
        if self.keys:
            return mask[:, None, None]
        return mask.unflatten(0, (-1, self.heads)) if mask.ndim == 3 else mask


class Dropout(nn.Dropout):
    """Dropout that leaves counts whole."""

    reads_spikes = True

    def forward(self, input: Any) -> Any:
        """Drops channels in training."""
        if not isinstance(input, SpikeTensor) or not self.training or not self.p:
            return input if isinstance(input, SpikeTensor) else super().forward(input)
        keep = torch.rand_like(input.counts) >= self.p
        return SpikeTensor(input.counts * keep, input.scale / max(1.0 - self.p, 1e-12))
