"""Spike sites between the steps of a network: behind activations that become spikes, and in front of projections.

Projections that read one value share a site; whoever reads numbers goes on reading numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion import spike_layers
from fastsnn_conversion.context import Replacement, channels_of
from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_convert.modules.graph_steps import Traced, remapped
from fastsnn_core import Neuron
from fastsnn_model_graph import Ref, Step
from fastsnn_model_graph.steps import fill


@attrs.frozen
class Maker:
    """Makes spike sites of one kind of neuron."""

    kind: Neuron
    fallback: int

    def __call__(self, features: int, channels: int) -> TimeFoldedSite:
        """A site over groups of `channels` dimensions, `features` wide (the fallback where nobody knows)."""
        return TimeFoldedSite.of(self.kind, features or self.fallback, channels)


def readers(steps: Sequence[Step]) -> dict[str, list[Step]]:
    """Who reads each value."""
    found: dict[str, list[Step]] = {}
    for step in steps:
        for source in dict.fromkeys(step.sources()):
            found.setdefault(source, []).append(step)
    return found


def insert_sites(
    traced: Traced,
    found: Mapping[str, tuple[Replacement, str]],
    samples: Mapping[str, Any],
    maker: Maker,
    coverage: str,
) -> tuple[list[Step], dict[str, tuple[str, TimeFoldedSite]]]:
    """New steps with site steps between them, and ``{site: (the step it serves, the site)}``."""
    reads = readers(traced.steps)
    spiking: set[str] = set()
    names: dict[str, str] = {}
    plain: dict[str, str] = {}  # what readers of numbers read instead of spikes
    steps: list[Step] = []
    sites: dict[str, tuple[str, TimeFoldedSite]] = {}
    in_front: dict[str, str] = {}

    def says(step: Step) -> str:
        return found[step.name][0].spikes if step.name in found else "no"

    def group(value: str, reader: Step | None = None) -> int:
        """Trailing dimensions that share a threshold where `value` is spiked for those who read it."""
        whole = samples[value].ndim - 1
        best = 1
        for step in reads.get(value, ()) if reader is None else (reader,):
            if says(step) == "in":
                best = max(best, min(whole, channels_of(found[step.name][0].module)))
            elif isinstance(found[step.name][0].module if step.name in found else None, spike_layers.Flatten):
                best = whole
            elif says(step) == "pass":
                best = max(best, min(whole, group(step.name)))
        return best

    def site(value: str, channels: int, served: str) -> str:
        name, taken = f"{value}_spikes", {s.name for s in (*traced.steps, *steps)}
        while name in taken or name in sites:
            name += "_"
        features = int(torch.Size(samples[value].shape[samples[value].ndim - channels :]).numel())
        sites[name] = (served, maker(features, channels))
        steps.append(Step(name, "module", name, (Ref(names.get(value, value)),)))
        return name

    for step in traced.steps:
        source = step.args[0].name if step.args and isinstance(step.args[0], Ref) else ""
        if says(step) == "pass" and type(found[step.name][0].module) is nn.Identity:  # folded away: nothing is left
            names[step.name] = names.get(source, source)
            plain[step.name] = plain.get(source, names[step.name])
            spiking |= {step.name} & {step.name if source in spiking else ""}
            continue
        if says(step) == "in" and source not in spiking and coverage == "projections":
            if source not in in_front:
                in_front[source] = site(source, group(source, step), step.name)
            new = remapped(step, names | {source: in_front[source]})
        else:
            new = remapped(step, names if says(step) in ("in", "pass") else names | plain)
        steps.append(new)
        if says(step) == "out" and isinstance(samples[step.name], Tensor):
            names[step.name] = site(step.name, group(step.name), step.name)
            if coverage == "projections":
                plain[step.name] = step.name
            spiking.add(step.name)
        elif says(step) == "made" or (says(step) == "pass" and source in spiking):
            spiking.add(step.name)
    traced.output = rename_output(traced.output, names | plain)
    return steps, sites


def rename_output(output: Any, names: Mapping[str, str]) -> Any:
    """The output with values replaced by their spikes."""
    return fill(output, lambda ref: Ref(names.get(ref.name, ref.name)))
