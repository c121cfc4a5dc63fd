"""Batch norms where a sequence comes in segments: whose statistics they use, and what they keep.

    tbptt, checkpoint_time   μ, σ of the segment; kept by its share of the steps
    online                   μ, σ as they were kept before this sequence: constants of every step; kept are those of the
                             whole sequence, when it is over

An online rule knows no later step, so it cannot have the statistics of the sequence; those of a segment would tie its
steps together and shift every error by a mean that no trace has. With constants a batch norm is γ x̂ + β, a product
like that of any weight, and its traces are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError

Apply = Callable[[Any, Tensor], Tensor]


def batch_norms(model: nn.Module) -> dict[str, Any]:
    """Batch norms by name, tdBN among them."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


@contextmanager
def norms_weighed(model: nn.Module, share: float) -> Iterator[None]:
    """Inside the block batch norms take up statistics as of this `share` of the steps, with a momentum so much smaller.

    A segment of one step would otherwise count as much as all others, and evaluation would use its statistics.
    """
    usual = [(norm, norm.momentum) for norm in batch_norms(model).values() if norm.momentum is not None]
    try:
        for norm, momentum in usual:
            norm.momentum = momentum * share
        yield
    finally:
        for norm, momentum in usual:
            norm.momentum = momentum


@contextmanager
def norms_seen_before(model: nn.Module) -> Iterator[None]:
    """Inside the block batch norms keep nothing: what they see was seen already."""
    norms = list(batch_norms(model).values())
    usual = [(norm.momentum, None if (n := norm.num_batches_tracked) is None else n.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, seen) in zip(norms, usual, strict=True):
            norm.momentum = momentum
            if seen is not None:
                norm.num_batches_tracked.copy_(seen)


# -- online rules ------------------------------------------------------------------------------------------------


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """``[C]`` against ``x [N, C, …]``."""
    return values.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))


def gain_and_shift(norm: Any, x: Tensor) -> Tensor:
    """γ x̂ + β of the standardised ``x [N, C, …]``."""
    return x if norm.weight is None else x * per_channel(norm.weight, x) + per_channel(norm.bias, x)


@contextmanager
def norms_constant(model: nn.Module, apply: Apply = gain_and_shift) -> Iterator[None]:
    """Inside the block batch norms standardise by the statistics they have, and take up the block's at its end.

    `apply` is what follows: γ x̂ + β, or the same with traces.
    """
    norms = batch_norms(model) if model.training else {}
    for name, norm in norms.items():
        if norm.running_mean is None:
            raise FastSNNError(
                f"online rules need the statistics that a batch norm keeps, and {name} keeps none (tracked = false)"
            )
    sums: dict[Any, list[Any]] = {norm: [0.0, 0.0, 0] for norm in norms.values()}
    with ExitStack() as around:
        for norm in sums:
            norm.forward = partial(standardised, norm, sums[norm], apply)
            around.callback(vars(norm).pop, "forward", None)
        yield
    for norm, (total, squares, n) in sums.items():
        if n > 1:
            take_up(norm, total / n, (squares / n - (total / n) ** 2).clamp_min(0) * n / (n - 1))


def standardised(norm: Any, sums: list[Any], apply: Apply, x: Tensor) -> Tensor:
    """`apply` to (x - μ) / √(σ² + ε) of constants μ and σ; what x is goes into `sums`."""
    with torch.no_grad():
        others = [d for d in range(x.ndim) if d != 1]
        wide = x.detach().double()
        sums[0] = sums[0] + wide.sum(others)
        sums[1] = sums[1] + wide.square().sum(others)
        sums[2] += x.numel() // x.shape[1]
        mean = per_channel(norm.running_mean, x)
        rate = per_channel((norm.running_var + norm.eps).rsqrt(), x)
    return apply(norm, (x - mean) * rate)


@torch.no_grad()
def take_up(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Statistics of one batch, as torch's batch norms keep them."""
    norm.num_batches_tracked.add_(1)
    share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


@torch.no_grad()
def first_statistics(model: nn.Module, pieces: Callable[[], Iterator[None]]) -> None:
    """Batch norms that have seen nothing take the mean over `pieces`, each of which runs one segment."""
    fresh = [n for n in batch_norms(model).values() if n.running_mean is not None and not n.num_batches_tracked]
    if not fresh or not model.training:
        return
    usual = [norm.momentum for norm in fresh]
    try:
        for norm in fresh:
            norm.momentum = None  # of torch: the mean of all batches
        for _ in pieces():
            pass
    finally:
        for norm, momentum in zip(fresh, usual, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.fill_(1)
