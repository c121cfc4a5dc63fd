"""Activation sparsity: an L1 penalty on the inputs of chosen spike sites, and statistics of skipped weights.

    loss + l1 · ramp(step) · Σ_s [silent_s < target] mean|x_s| / S      x_s: input of site s, S: number of sites

A ReLU gate and a small L1 silence nearly all hidden channels without raising the loss (Sakana's TwELL, arXiv
2603.23198; ramps as in ProSparse, arXiv 2402.13516). Sites that have reached the target sparsity are not penalized.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.site import SpikeSite
from fastsnn_core.spike_tensor import SpikeTensor


@attrs.define
class ActivationSparsity:
    """Statistics of the last forward pass: differentiable mean |x| and silent fraction by site, reads by matrix."""

    magnitudes: dict[str, Tensor] = attrs.field(factory=dict)
    silent: dict[str, float] = attrs.field(factory=dict)
    reads: dict[str, tuple[float, float]] = attrs.field(factory=dict)  # weights, and how many met a 0

    def penalty(self, target: float) -> Tensor | None:
        """Sum of mean |x| over sites with a silent fraction below `target` (0: all), divided by the number of sites."""
        some = [x for name, x in self.magnitudes.items() if not target or self.silent[name] < target]
        return torch.stack(some).sum() / len(self.magnitudes) if some else None

    def row(self) -> dict[str, Any]:
        """Columns of the log: silent fraction by site, and fraction of all weights that met a zero input."""
        found: dict[str, Any] = {"silent_sites": dict(self.silent)} if self.silent else {}
        if total := sum(n for n, _ in self.reads.values()):
            found["silent_bytes"] = sum(s for _, s in self.reads.values()) / total
        return found


def silent_share(x: Any) -> float:
    """Fraction of zeros in a site's output (spikes or a tensor)."""
    values = x.counts if isinstance(x, SpikeTensor) else x
    return float((values.detach() == 0).float().mean()) if values.numel() else 0.0


def chosen_sites(model: nn.Module, names: tuple[str, ...]) -> dict[str, SpikeSite]:
    """Spike sites by module path whose `SpikeSite.name` (such as ``ffn_hidden``) is in `names`."""
    return {path: m for path, m in model.named_modules() if isinstance(m, SpikeSite) and m.name in names}


@contextlib.contextmanager
def record_activations(
    model: nn.Module, names: tuple[str, ...], *, magnitudes: bool, reads: bool
) -> Iterator[ActivationSparsity]:
    """Record the sites called `names`, and with `reads` every linear layer, through forward hooks.

    The hooks must stay until after the backward pass, like those of `firing_rate.watch`.
    """
    seen, handles = ActivationSparsity(), []

    def at_site(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if magnitudes and torch.is_grad_enabled():
                seen.magnitudes[path] = args[0].float().abs().mean()
            seen.silent[path] = silent_share(output[0])

        return hook

    def at_matrix(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            size = float(module.weight.numel())  # type: ignore[operator]
            seen.reads[path] = (size, size * silent_share(args[0]))

        return hook

    def at_head(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        size = float(model.embed.weight.numel())  # type: ignore[union-attr,operator]
        seen.reads["head"] = (size, size * silent_share(output[0]))

    if magnitudes or reads:
        handles += [m.register_forward_hook(at_site(path)) for path, m in chosen_sites(model, names).items()]
    if reads:
        handles += [
            m.register_forward_pre_hook(at_matrix(path))
            for path, m in model.named_modules()
            if isinstance(m, nn.Linear)
        ]
        if getattr(model, "head", 0) is None and isinstance(getattr(model, "head_site", None), SpikeSite):
            handles.append(model.head_site.register_forward_hook(at_head))  # type: ignore[union-attr]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def ramp(step: int, share: float, steps: int) -> float:
    """Weight of the penalty at a step (from 0): rises linearly to 1 over the first `share` of the steps."""
    last = share * steps
    return 1.0 if step >= last else (step + 1) / (last + 1)
