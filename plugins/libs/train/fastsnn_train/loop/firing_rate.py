"""Spike-specific training: firing-rate penalty, gradual blend from dense values to spikes, rescue of dead sites."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.site import SpikeSite, is_spikes, sites
from fastsnn_train.loop.health import SiteHealth, health_of, limit_of


@attrs.define
class SpikeObservations:
    """Statistics of the last forward pass by spiking module: health, and differentiable firing rates."""

    health: dict[str, list[SiteHealth]] = attrs.field(factory=dict)
    rates: dict[str, Tensor] = attrs.field(factory=dict)

    def means(self) -> dict[str, SiteHealth]:
        """Health by site, averaged over the micro-batches of a batch."""
        return {name: SiteHealth.mean(rows) for name, rows in self.health.items()}


@contextlib.contextmanager
def watch(model: nn.Module, *, health: bool, rates: bool) -> Iterator[SpikeObservations]:
    """Record statistics of every spiking module through forward hooks; no activations are stored.

    The hooks must stay until after the backward pass: activation checkpointing reruns blocks there, and the rerun must
    match the first forward pass.
    """
    seen, handles = SpikeObservations(), []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not is_spikes(output):
                return
            spikes = output[0] if isinstance(output, tuple) else output
            if health:
                seen.health.setdefault(name, []).append(health_of(spikes, module))
            if rates and torch.is_grad_enabled():
                seen.rates[name] = firing_rate(args[0], spikes.counts, module)

        return hook

    if health or rates:
        for name, module in model.named_modules():
            if not isinstance(module, SpikeSite):
                handles.append(module.register_forward_hook(look(name.removesuffix(".neuron"))))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def firing_rate(x: Tensor, counts: Tensor, neuron: nn.Module) -> Tensor:
    """Mean |count|, with a gradient through the surrogate also where a channel is silent.

    The derivative of |c| is 0 at c = 0; there the sign of the input replaces it, so that a silent channel still gets a
    gradient. For neurons without negative counts the sign is always +1.
    """
    if getattr(neuron, "lo", -1.0) >= 0:
        return counts.mean()
    sign = torch.where(counts != 0, counts.detach().sign(), x.detach().sign().to(counts.dtype))
    return (counts * sign).mean()


def band_penalty(rates: dict[str, Tensor], low: float, high: float) -> Tensor:
    """Mean over sites of ``max(0, low - r)² + max(0, r - high)²``."""
    table = torch.stack(list(rates.values()))
    return ((low - table).clamp_min(0).square() + (table - high).clamp_min(0).square()).mean()


def blend_at(step: int, share: float, steps: int) -> float:
    """Blend factor at a step (from 0): rises linearly to 1 over the first `share` of the steps."""
    last = share * steps
    return 1.0 if step >= last else (step + 1) / (last + 1)


@contextlib.contextmanager
def blended(model: nn.Module, blend: float) -> Iterator[None]:
    """Make every spike site output ``(1 - blend) x + blend · spikes`` while the block runs; resets blend to 1 after."""
    found = sites(model).values() if blend < 1.0 else ()
    for site in found:
        site.blend = blend
    try:
        yield
    finally:
        for site in found:
            site.blend = 1.0


@attrs.define
class Rescue:
    """Recalibrates thresholds of sites that stay silent or saturated for `patience` log steps (0: off).

    `streak` counts those log steps by site and is saved in checkpoints. Only neurons with ``calibrate_`` can be
    recalibrated; for the others the warning says what to change.
    """

    patience: int
    streak: dict[str, int] = attrs.field(factory=dict)

    def due(self, found: dict[str, SiteHealth], model: nn.Module) -> list[str]:
        """Update `streak`; returns the sites to recalibrate now."""
        neurons = {name: site.neuron for name, site in sites(model).items()}
        bad = {name: h.state(limit_of(neurons[name])) for name, h in found.items() if name in neurons}
        self.streak = {name: self.streak.get(name, 0) + 1 for name, state in bad.items() if state}
        ready = [n for n, times in self.streak.items() if times >= self.patience and hasattr(neurons[n], "calibrate_")]
        for name in ready:
            del self.streak[name]
        return ready if self.patience else []

    @torch.no_grad()
    def help(
        self, names: list[str], model: nn.Module, run: Callable[[], Any], share: Callable[[Tensor], Any]
    ) -> list[str]:
        """Recalibrate `names` on the inputs of one `run()`, averaged over processes (`share`); returns messages."""
        says, handles = [], []
        for name in names:
            neuron: Any = model.get_submodule(name).neuron

            def hook(module: Any, args: tuple[Any, ...], name: str = name) -> None:
                old = threshold_text(module)
                module.calibrate_(args[0])
                for tensor in (*module.parameters(), *module.buffers()):
                    share(tensor)
                says.append(
                    f"{name} was silent or saturated for {self.patience} log steps: its threshold was set from the "
                    f"current batch{old and f', {old} → {threshold_text(module)}'}"
                )

            handles.append(neuron.register_forward_pre_hook(hook))
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        return says


def threshold_text(neuron: nn.Module) -> str:
    """Mean of a neuron's threshold ``theta`` as text; "" if it has none."""
    theta = getattr(neuron, "theta", None)
    return f"{float(theta.detach().mean()):.4g}" if isinstance(theta, Tensor) else ""
