"""Diagnostics: silent and saturated spike sites, vanishing and exploding gradients, non-finite outputs."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsnn_core.site import sites
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_train.loop.parallel import World, is_sharded

SILENT, SATURATED = 0.999, 0.5
VANISHING, EXPLODING = 1e-4, 1e2


@attrs.frozen
class SiteHealth:
    """Fraction of counts that are 0, mean |count|, and fraction of the nonzero counts at the neuron's limit."""

    silent: float
    mean_count: float
    saturated: float

    def state(self, limit: float) -> str:
        """``silent``, ``saturated`` or "" if neither. A binary neuron (limit 1) is never saturated."""
        if self.silent > SILENT:
            return "silent"
        return "saturated" if self.saturated > SATURATED and limit > 1 else ""

    @classmethod
    def mean(cls, rows: list[SiteHealth]) -> SiteHealth:
        """Mean over the micro-batches of a batch."""
        return cls(*(sum(column) / len(rows) for column in zip(*map(attrs.astuple, rows))))


@torch.no_grad()
def health_of(spikes: SpikeTensor, module: nn.Module) -> SiteHealth:
    """Health of one spiking module; uses only reductions, so it is cheap enough for training."""
    counts, limit = spikes.counts.detach().abs(), limit_of(module)
    silent = float((counts == 0).float().mean())
    at_limit = float((counts >= limit).float().mean()) / max(1.0 - silent, 1e-9) if math.isfinite(limit) else 0.0
    return SiteHealth(silent, float(counts.float().mean()), at_limit)


def limit_of(module: nn.Module | None) -> float:
    """Largest spike count the neuron can emit; infinity if unbounded."""
    return float(getattr(module, "hi", getattr(module, "bound", math.inf)))


def shared(found: dict[str, SiteHealth], world: World, device: torch.device) -> dict[str, SiteHealth]:
    """Health averaged over processes."""
    if world.size == 1:
        return found
    flat = iter(world.mean([v for h in found.values() for v in attrs.astuple(h)], device))
    return {name: SiteHealth(next(flat), next(flat), next(flat)) for name in found}


def firing(found: dict[str, SiteHealth]) -> dict[str, float]:
    """Means over sites, for the log and the progress bar."""
    if not found:
        return {}
    n = len(found)
    return {
        "silent": sum(h.silent for h in found.values()) / n,
        "mean_count": sum(h.mean_count for h in found.values()) / n,
    }


def complaints(found: dict[str, SiteHealth], modules: dict[str, nn.Module]) -> dict[str, str]:
    """Warnings by site, each with a suggested fix."""
    says = {}
    for name, h in found.items():
        module = modules.get(name)
        state, fixed = h.state(limit_of(module)), hasattr(module, "calibrate_")
        if state == "silent":
            fix = "lower its threshold (rescue = 3 sets it from data)" if fixed else "raise its k"
            says[name] = f"{name} is silent ({h.silent:.1%} of counts are 0): {fix}, or lower the learning rate"
        elif state == "saturated":
            fix = "raise its threshold (rescue = 3 sets it from data) or its limit" if fixed else "raise its limit"
            says[name] = f"{name} is saturated ({h.saturated:.1%} of its spiking channels are at the limit): {fix}"
    return says


def gradient_norms(model: nn.Module) -> tuple[dict[str, float], float]:
    """Gradient norm per block and in total, with one device transfer and one all-reduce.

    Squares are summed in float64 and norms rounded once to float32, so that clipping does not depend on the number of
    shards (a difference in the last bit would reach every weight, and from there change spike counts).
    """
    blocks: dict[str, list[Tensor]] = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            grad: Any = p.grad
            local = grad.to_local() if is_sharded(grad) else grad
            square = torch.linalg.vector_norm(local.detach(), dtype=torch.float64).square()
            pair = [square, square * 0] if is_sharded(grad) else [square * 0, square]
            blocks.setdefault(block_of(name), []).append(torch.stack(pair))
    if not blocks:
        return {}, 0.0
    table = torch.stack([torch.stack(rows).sum(0) for rows in blocks.values()])
    if any(is_sharded(p) for p in model.parameters()):
        shards = table[:, 0].contiguous()
        dist.all_reduce(shards)
        table[:, 0] = shards
    squares = table.sum(1)
    norms = torch.stack([*squares, squares.sum()]).sqrt().float().tolist()
    return dict(zip(blocks, norms)), norms[-1]


def block_of(name: str) -> str:
    """Block of a parameter: ``layers.3`` for ``layers.3.attention.q.weight``, ``embed`` for ``embed.weight``."""
    parts = name.split(".")
    depth = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[:depth])


def recurrent_norms(model: nn.Module) -> dict[str, float]:
    """By block: spectral norm of its neuron's recurrent weights, in thresholds; a matrix of a neuron is recurrent."""
    found: dict[str, float] = {}
    for name, site in sites(model).items():
        theta, block = getattr(site.neuron, "theta", torch.ones(())), block_of(f"{name}.neuron")
        for p in site.neuron.parameters():
            if p.ndim == 2 and not is_sharded(p):
                norm = float(torch.linalg.matrix_norm(p.detach().float(), 2) / theta.detach().float().mean())
                found[block] = max(norm, found.get(block, 0.0))
    return found


def exploded_in_time(norms: dict[str, float], model: nn.Module) -> dict[str, str]:
    """The warning where a gradient grows on its way back through recurrent weights, step by step; else nothing.

    So it is where a block with recurrent weights, and with it the blocks in front, has `EXPLODING` times the gradient
    of the blocks behind, and more than `EXPLODING`. The median is of no use there: most blocks are in front.
    """
    least = min(norms.values(), default=0.0)
    if max(norms.values(), default=0.0) <= EXPLODING * max(1.0, least):
        return {}
    for name, spectral in recurrent_norms(model).items():
        if norms.get(name, 0.0) > EXPLODING * max(1.0, least):
            return {
                name: f"the gradient explodes on its way back in time through the recurrent weights of {name} "
                f"({norms[name]:.1e}; {least:.1e} behind them): their spectral norm is {spectral:.2f} thresholds, and "
                "they act again at every step. Lower recurrent_lr, or give the neuron a surrogate with a small slope "
                "(triangle)"
            }
    return {}


def gradient_complaints(norms: dict[str, float], model: nn.Module | None = None) -> dict[str, str]:
    """Warnings for blocks whose gradient norm is far below or above the median block's, and why where it is known."""
    if model is not None and (found := exploded_in_time(norms, model)):
        return found
    known = sorted(norms.values())
    middle = known[len(known) // 2] if known else 0.0
    says = {}
    for name, norm in norms.items():
        if norm < VANISHING * middle:
            says[name] = (
                f"the gradient of {name} vanishes ({norm:.1e}, median block {middle:.1e}): is it still connected?"
            )
        elif middle and norm > EXPLODING * middle:
            says[name] = (
                f"the gradient of {name} explodes ({norm:.1e}, median block {middle:.1e}): lower lr or clip harder"
            )
    return says


def first_bad(model: nn.Module, run: Any) -> str:
    """Find the first module with a non-finite output during `run()`; returns a text for the error message.

    If every output is finite, it names the last parameter (first in the backward pass) with a non-finite gradient.
    """
    bad: list[str] = []
    handles = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            value = first.value() if hasattr(first, "counts") else first
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                bad.append(name)

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(watch(name or "the model")))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    if bad:
        return f"the first bad output is that of {bad[0]}"
    for name, p in reversed(list(model.named_parameters())):
        if p.grad is not None and not bool(torch.isfinite(p.grad).all()):
            return f"every output is finite, the gradient of {name} is not"
    return "every layer's output and gradient is finite here: the loss itself overflowed, or another process's did"
