"""A network with INT8 weights in every layer that reads spikes: what ``export --to w8a`` writes of it.

Batch norms are folded first. A layer gets INT8 weights where spikes with one threshold per sample come in, so that its
sums are whole numbers; the others (the first layer, which reads pixels, and the projections inside of a spiking
attention) stay as they are, and `quantised` says in the model's milestones which and why.
"""

from __future__ import annotations

import logging
from typing import Any

import attrs
import torch
from torch import nn

from fastsnn_core import bundle_checks
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_integer.quant_conv import QuantConv, int8_layer, no_int8_form
from fastsnn_integer.quantization import Quant, QuantLinear

LOG = logging.getLogger("fastsnn")
PROJECTIONS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
NUMBERS = "it reads numbers, no spikes"
INSIDE = "it is a part of a layer that keeps float weights"


class IntegerForm:
    """A network whose layers that read spikes can have INT8 weights (`fastsnn_integer.quantization.quantise`)."""

    def not_quantisable(self, quant: Quant) -> list[str]:
        """Reasons why this network has no form with such weights."""
        model: Any = self
        if quant.bits != 8 or quant.group:
            return [f"{model.spec.name} has INT8 weights with one scale per output only (w8a with group = 0)"]
        if any(isinstance(m, QuantLinear | QuantConv) for m in model.modules()):
            return ["its weights are INT8 already"]
        why = why_in_float(model.folded())
        if all(why.values()):
            says = "; ".join(f"{name}: {reason}" for name, reason in why.items())
            return [f"none of its layers has an INT8 form: {says or 'there are none'}"]
        return []

    def quantised(self, quant: Quant) -> Any:
        """A copy for inference, batch norms folded, with INT8 weights in every layer that reads spikes."""
        given: Any = self
        if faults := self.not_quantisable(quant):
            raise FastSNNError("; ".join(faults))
        model: Any = bundle_checks.unwrapped(given)
        bundle_checks.refuse_forward_hooks(model)
        old: Any = model.folded().float()
        why = why_in_float(old)
        chosen = {name for name, reason in why.items() if not reason}
        spec = old.with_int8(chosen)
        for name in chosen:
            above, _, last = name.rpartition(".")
            setattr(old.get_submodule(above), last, int8_layer(old.get_submodule(name)))
        new = type(old)(spec).to(next((t.device for t in old.state_dict().values()), "cpu")).eval()
        new.load_state_dict(old.state_dict())
        for name in ("meta", "sections"):
            if hasattr(old, name):
                setattr(new, name, getattr(old, name))
        kept = {name: reason for name, reason in why.items() if reason}
        for name, reason in kept.items():
            LOG.log(logging.INFO if reason == NUMBERS else logging.WARNING, "%s keeps float weights: %s", name, reason)
        meta = dict(getattr(new, "meta", {}))
        done = {"what": "quantise", "bits": 8, "int8": sorted(chosen), "float": kept}
        new.meta = {k: v for k, v in meta.items() if k != "created"} | {
            "milestones": [*meta.get("milestones", []), done]
        }
        bundle_checks.remember(new)
        return new


@torch.no_grad()
def why_in_float(network: Any) -> dict[str, str]:
    """Of every linear layer and convolution by name: why it must keep float weights; "" where it need not."""
    found: dict[str, str] = {}
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0] if inputs else None
            why = NUMBERS
            if isinstance(x, SpikeTensor):
                each = x.scale.numel() == 1 or x.scale.numel() == len(x.counts)
                why = no_int8_form(module) if not isinstance(module, nn.Linear) else ""
                why = why if each else "spikes come in with a threshold per channel, which cannot leave the sum"
            found[name] = found.get(name) or why

        return hook

    names = sorted(name for name, m in network.named_modules() if isinstance(m, PROJECTIONS))
    for name in names:
        handles.append(network.get_submodule(name).register_forward_pre_hook(watch(name)))
    try:
        x = network.spec.example(2)
        network(*(x if isinstance(x, tuple) else (x,)))
    finally:
        for handle in handles:
            handle.remove()
    why = {name: found.get(name, "it was not run") for name in names}
    twin = type(network)(network.with_int8({name for name, reason in why.items() if not reason}))
    for name, reason in why.items():
        if not reason and not isinstance(twin.get_submodule(name), QuantLinear | QuantConv):
            why[name] = INSIDE
    return why


def layer_in_int8(layer: Any, module: nn.Module, name: str, chosen: set[str]) -> Any:
    """A `Layer` with INT8 weights where its module is one of the chosen, by name; nested networks likewise."""
    if name in chosen:
        return attrs.evolve(layer, bits=8)
    if layer.op == "part" and hasattr(module, "layers"):
        return attrs.evolve(layer, part=spec_in_int8(module, chosen, f"{name}."))
    if layer.op == "residual":
        parts = {n: getattr(module, n, None) for n in ("part", "shortcut")}
        nested = {n: spec_in_int8(m, chosen, f"{name}.{n}.") for n, m in parts.items() if hasattr(m, "layers")}
        return attrs.evolve(layer, **nested)
    return layer


def spec_in_int8(network: Any, chosen: set[str], before: str = "") -> Any:
    """The spec of a sequential network with INT8 weights in the chosen layers."""
    rows = zip(network.spec.layers, network.layers)
    layers = [layer_in_int8(layer, m, f"{before}layers.{i}", chosen) for i, (layer, m) in enumerate(rows)]
    return attrs.evolve(network.spec, layers=tuple(layers))
