"""How the spikes and the gradients are doing, site by site and block by block, and what to do about it."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_train.loop.parallel import World, is_sharded

SILENT, SATURATED = 0.999, 0.5
VANISHING, EXPLODING = 1e-4, 1e2


@attrs.frozen
class SiteHealth:
    """Share of silent channels, mean |count|, and which share of the others is at the neuron's limit."""

    silent: float
    mean_count: float
    saturated: float

    def state(self, limit: float) -> str:
        """``silent``, ``saturated``, or nothing where all is well. A binary neuron is never saturated."""
        if self.silent > SILENT:
            return "silent"
        return "saturated" if self.saturated > SATURATED and limit > 1 else ""

    @classmethod
    def mean(cls, rows: list[SiteHealth]) -> SiteHealth:
        """Of the pieces of a batch."""
        return cls(*(sum(column) / len(rows) for column in zip(*map(attrs.astuple, rows))))


@torch.no_grad()
def health_of(spikes: SpikeTensor, module: nn.Module) -> SiteHealth:
    """One module's health; only sums, so that it is cheap enough for training."""
    counts, limit = spikes.counts.detach().abs(), limit_of(module)
    silent = float((counts == 0).float().mean())
    at_limit = float((counts >= limit).float().mean()) / max(1.0 - silent, 1e-9) if math.isfinite(limit) else 0.0
    return SiteHealth(silent, float(counts.float().mean()), at_limit)


def limit_of(module: nn.Module | None) -> float:
    """Largest count a neuron can give."""
    return float(getattr(module, "hi", getattr(module, "bound", math.inf)))


def shared(found: dict[str, SiteHealth], world: World, device: torch.device) -> dict[str, SiteHealth]:
    """Health averaged over processes."""
    if world.size == 1:
        return found
    flat = iter(world.mean([v for h in found.values() for v in attrs.astuple(h)], device))
    return {name: SiteHealth(next(flat), next(flat), next(flat)) for name in found}


def firing(found: dict[str, SiteHealth]) -> dict[str, float]:
    """Means over sites: what the log and the progress bar show."""
    if not found:
        return {}
    n = len(found)
    return {
        "silent": sum(h.silent for h in found.values()) / n,
        "mean_count": sum(h.mean_count for h in found.values()) / n,
    }


def complaints(found: dict[str, SiteHealth], modules: dict[str, nn.Module]) -> dict[str, str]:
    """What is wrong with which site, with the fix in the message."""
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
    """Norm of the gradient by block, and of all of it: one transfer from the device, one sum over processes.

    Squares are summed in float64 and norms rounded once, to float32: clipping is by the same number however many shards
    the gradients lie in (a last bit of it would reach every weight, and a weight's last bit becomes a whole count).
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
    """``layers.3.attention.q.weight`` belongs to ``layers.3``, ``embed.weight`` to ``embed``."""
    parts = name.split(".")
    depth = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[:depth])


def gradient_complaints(norms: dict[str, float]) -> dict[str, str]:
    """Blocks whose gradient is out of proportion to the median block's."""
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
    """Name of the first module whose output is not finite when `run()` is called, for the message of a stopped run.

    Where every output is finite, the last parameter (the first in the backward pass) whose gradient is not.
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
