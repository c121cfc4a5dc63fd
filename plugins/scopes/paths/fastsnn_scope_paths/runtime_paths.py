"""Which way every layer's input went, and why: by events or dense, in which kernel, at what density.

`ways` runs a model once and looks at each of its weighted layers; `of_model` does so for a prompt and for one decoded
token, where kernels choose differently. Integer layers (`fastsnn_integer.quantization`) are chosen for by the
kernels, whose own reason is repeated here; float layers multiply counts as numbers.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.moved import renamed
from fastsnn_core.ops.dispatch import reasons
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_integer.four_bits import FourBits
from fastsnn_integer.quant_conv import QuantConv
from fastsnn_integer.quantization import QuantEmbedding, QuantLinear, RowLinear
from fastsnn_integer.ternary import PackedTernary

LOOK = 16  # tokens that are decoded to see how often gates come first
DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@attrs.frozen
class Way:
    """One layer in one call: `rows` inputs at once, the share of them that is not zero, the path and its reason."""

    layer: str
    inputs: int
    outputs: int
    rows: int
    active: float
    path: str
    why: str

    @property
    def events_per_input(self) -> float:
        """Non-zero entries per weight row: what kernels compare with their break-even."""
        return self.active * self.rows


@torch.no_grad()
def ways(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[list[Way], Any]:
    """``(rows, output)`` of one call of `model`, a row per call of a weighted layer."""
    found: list[Way] = []
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            x = inputs[0] if inputs else None
            if isinstance(x, SpikeTensor) or (isinstance(x, Tensor) and x.is_floating_point()):
                found.append(way(name, module, x))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (*DENSE, QuantLinear, QuantConv, QuantEmbedding, FourBits, PackedTernary)):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        return found, model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def way(name: str, module: Any, x: SpikeTensor | Tensor) -> Way:
    """What a layer did with the input that it has just had."""
    spikes = x if isinstance(x, SpikeTensor) else None
    values = x.counts.detach() if isinstance(x, SpikeTensor) else x
    width = values.shape[-1]
    sizes = (getattr(module, "in_features", 0) or module.in_channels, getattr(module, "out_features", 0))
    active = float((values != 0).double().mean()) if values.numel() else 0.0
    rows = math.prod(values.shape[:-1]) if isinstance(module, nn.Linear) or not isinstance(module, DENSE) else 0
    out = sizes[1] or module.out_channels
    if isinstance(module, QuantConv):
        why = reasons().get("count_conv", "") if module.path != "naive" else "no compiled kernel takes count_conv here"
        why += "" if spikes is not None else "; numbers come in, which become counts of 8 bits"
        return Way(name, module.in_channels, out, len(values), active, module.path, why)
    if isinstance(module, FourBits):
        why = f"4-bit weights: rows of inputs that spiked, scaled per {module.group} of them"
        return Way(name, width, out, rows, active, module.path, why)
    if isinstance(module, PackedTernary):
        return Way(name, width, out, rows, active, module.path, "ternary weights: rows of inputs that spiked, added")
    if isinstance(module, QuantLinear | QuantEmbedding):
        operator = "event_linear" if spikes is not None and spikes.form == "event" else "count_linear"
        why = reasons().get(operator, "")
        if module.path == "naive":
            why = why or f"no compiled kernel takes {operator} on {values.device.type}"
        if spikes is not None and spikes.form == "dense":
            why += f"; one product per spike step, {spikes.steps} in all"
        if spikes is None:
            why += "; numbers come in, which become counts of 8 bits"
        return Way(name, width, out, rows, active, module.path, why)
    if isinstance(module, RowLinear):
        path, why = "torch, row by row", "float weights whose sums must not depend on the batch"
    elif spikes is None:
        path, why = "torch, dense", "no spikes in front"
    elif isinstance(module, nn.Linear) and (not spikes.scale.ndim or spikes.scale.shape[-1] == 1):
        path, why = "torch, dense on counts", "float weights; one threshold per token leaves the sum"
    elif isinstance(module, nn.Linear):
        path, why = "torch, dense on values", "float weights; a threshold per channel cannot leave the sum"
    else:
        path, why = "torch, convolution", "float weights"
    return Way(name, width, out, rows, active, path, why)


def of_model(model: nn.Module, inputs: Tensor) -> dict[str, list[Way]]:
    """Rows by phase: ``prompt`` and ``token`` (the last one, alone) of a language model, ``batch`` of any other."""
    training = model.training
    model.eval()
    try:
        streams = "return_state" in inspect.signature(model.forward).parameters
        if not streams or inputs.is_floating_point() or inputs.shape[1] < 2:
            return {"batch": ways(model, inputs)[0]}
        prompt, (_, state) = ways(model, inputs[:1, :-1], return_state=True)
        return {"prompt": prompt, "token": ways(model, inputs[:1, -1:], state)[0]}
    finally:
        model.train(training)


@torch.no_grad()
def fused_step_path(model: Any, inputs: Tensor) -> dict[str, Any] | None:
    """``{"kernel", "why"}`` of the fused decoding step: which kernel set decodes whole tokens, or why none does.

    None for a model that does not decode tokens, or knows no fused step.
    """
    if inputs.is_floating_point() or not hasattr(model, "fast") or not inputs.numel():
        return None
    training = model.training
    model.eval()
    try:
        stream = model.fast(model(inputs[:1, :1], return_state=True)[1])
        found = dict(model.fast_step)
        if stream is not None and hasattr(stream.made, "gate_first"):
            before = stream.made.gate_first
            for token in inputs[0, 1 : 1 + LOOK].tolist() if before else ():
                stream.step(token)
            tallies = {name: (n[0] - before[name][0], n[1] - before[name][1])
                       for name, n in stream.made.gate_first.items()}  # fmt: skip
            found |= {"gate_first": tallies} if before else {}
        return found
    finally:
        model.train(training)


def says(step: dict[str, Any] | None) -> str:
    """One line about `fused_step_path`."""
    if step is None:
        return ""
    if step["kernel"]:
        said = f"decoding: whole tokens in one fused step ({step['kernel']}); below is what an ordinary step takes"
        tallies = step.get("gate_first")
        if not tallies:
            return said
        few, blocks = sum(n[0] for n in tallies.values()), sum(map(sum, tallies.values()))
        return f"{said}; gates first: up behind open gates only in {few} of {blocks} blocks of channels, by density"
    return f"decoding: layer by layer, since no fused step takes it: {step['why']}"


def merged_rows(rows: list[Way]) -> tuple[list[str], list[list[str]]]:
    """``(columns, cells)``: layers of one kind that went the same way share a row."""
    groups: dict[tuple[Any, ...], list[Way]] = {}
    for row in rows:
        key = (".".join("*" if part.isdigit() else part for part in row.layer.split(".")), row.path, row.why)
        groups.setdefault((*key, row.inputs, row.outputs, row.rows), []).append(row)
    cells = []
    for (kind, path, why, inputs, outputs, n), same in groups.items():
        low, high = min(r.active for r in same), max(r.active for r in same)
        share = f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} … {high:.0%}"
        name = kind if len(same) > 1 else same[0].layer
        times = f" × {len(same)}" if len(same) > 1 else ""
        events = f"{sum(r.events_per_input for r in same) / len(same):.3g}" if n else "–"
        cells.append([f"{name}{times}", f"{inputs} → {outputs}", str(n or "–"), share, events, path, why])
    return ["layer", "size", "rows", "active", "events/input", "path", "why"], cells


def tables_text(found: dict[str, list[Way]]) -> str:
    """The tables of all phases, as plain text."""
    out = []
    for phase, rows in found.items():
        columns, cells = merged_rows(rows)
        grid = [columns, *cells]
        widths = [max(len(row[i]) for row in grid) for i in range(len(columns) - 1)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[-1]]).rstrip() for row in grid]
        out.append("\n".join([f"{phase}:", *lines]))
    return "\n\n".join(out)


__getattr__ = renamed(__name__, {"table": "merged_rows", "text": "tables_text"})
