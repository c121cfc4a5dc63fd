"""Training that is about spikes: the firing band, the way from dense values to spikes, and the rescue of dead sites."""

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
    """What the spiking modules did in the last forward pass, by site: health, and rates that carry a gradient."""

    health: dict[str, list[SiteHealth]] = attrs.field(factory=dict)
    rates: dict[str, Tensor] = attrs.field(factory=dict)

    def means(self) -> dict[str, SiteHealth]:
        """Health by site, averaged over the pieces of a batch."""
        return {name: SiteHealth.mean(rows) for name, rows in self.health.items()}


@contextlib.contextmanager
def watch(model: nn.Module, *, health: bool, rates: bool) -> Iterator[SpikeObservations]:
    """Look at every spiking module while the block runs; keeps numbers, never activations.

    The hooks must stay until after the backward pass: with activation checkpointing blocks are run again there, and
    must do what they did before.
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

    d|c| would be 0 at c = 0; there the sign of the input is taken, so that a silent channel can be pulled up. Neurons
    without negative counts are pulled up by +1.
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
    """How much of a site's output is spikes at a step (from 0): rises linearly over the first `share` of the steps."""
    last = share * steps
    return 1.0 if step >= last else (step + 1) / (last + 1)


@contextlib.contextmanager
def blended(model: nn.Module, blend: float) -> Iterator[None]:
    """Every spike site mixes ``(1 - blend) x + blend · spikes`` while the block runs; afterwards only spikes pass."""
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
    """Sets thresholds anew at sites that stay silent or saturated for `patience` log steps.

    `streak` counts by site; it is part of a checkpoint. Only neurons with a threshold of their own (``calibrate_``) can
    be helped; for the others the complaint says what to change.
    """

    patience: int
    streak: dict[str, int] = attrs.field(factory=dict)

    def due(self, found: dict[str, SiteHealth], model: nn.Module) -> list[str]:
        """Sites whose time is up."""
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
        """Recalibrate `names` on what `run()` sends through them, averaged by `share`; what was done, in words."""
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
    """The threshold of a neuron in words; nothing where it has none by that name."""
    theta = getattr(neuron, "theta", None)
    return f"{float(theta.detach().mean()):.4g}" if isinstance(theta, Tensor) else ""
