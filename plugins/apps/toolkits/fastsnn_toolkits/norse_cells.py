"""Norse's cells, by their names and parameters (Norse 1.1), as nodes of a `nir_graph`: one step of length dt each.

    LIFBox   v ← v + dt/τ (v_leak − v + x)                       NIR's LIF, r = 1
    LIF      i ← i + x; v ← v + dt/τ_mem (v_leak − v + i); i ← i (1 − dt/τ_syn)       NIR's CubaLIF, w_in = τ_syn / dt
    IAF      v ← v + x                                           NIR's IF
    LIBox, LI                                                    the same without spikes

A recurrent LIF cell is its input weights, a CubaLIF, and its recurrent weights on an edge that is a step late.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_model_nir_graph import NirGraph, NirNode
from fastsnn_model_nir_graph.units import CONSTANTS, after
from fastsnn_toolkits.rows import Row, layer_of, toolkit_of

KNOWN = {
    "LIFBoxCell": "LIF", "LIFBox": "LIF", "LIFCell": "CubaLIF", "LIF": "CubaLIF", "IAFCell": "IF", "IAF": "IF",
    "LIBoxCell": "LI", "LIBox": "LI", "LICell": "CubaLI", "LI": "CubaLI", "LIFRecurrentCell": "CubaLIF",
    "LIFRecurrent": "CubaLIF",
}  # fmt: skip
PARAMETERS = {"v_threshold": "v_th", "v_reset": "v_reset", "v_leak": "v_leak"}


def norse_network(parts: list[tuple[str, nn.Module]], shape: tuple[int, ...]) -> tuple[Any, list[dict[str, str]]]:
    """``(NirGraph model, rows of the report)`` of a chain of layers and cells."""
    from fastsnn_core import build

    begin, nodes = shape, list[NirNode]()
    values: dict[str, dict[str, Tensor]] = {}
    rows, before, steps = list[dict[str, str]](), "input", set[float]()
    for number, (name, module) in enumerate(parts):
        label = f"{number}_{type(module).__name__.lower()}"
        if toolkit_of(module) != "norse":
            made = layer_node(label, layer_of(name, module), before, shape, values)
        else:
            steps.add(float(getattr(module, "dt", 0.0)))
            made = norse_cell_node(name, label, module, before, shape, values)
        for node in made:
            nodes.append(node)
            if not node.name.endswith("_back"):
                shape, before = after(node, shape), node.name
        kind = f"norse.{type(module).__name__}" if toolkit_of(module) else type(module).__name__
        rows.append({"name": name, "class": kind, "status": "converted", "note": ", ".join(n.kind for n in made)})
    if len(steps) > 1:
        raise ConversionError(f"its cells have steps of different lengths, dt = {', '.join(map(str, sorted(steps)))}")
    model: Any = build(NirGraph(input=begin, nodes=tuple(nodes), output=before, dt=steps.pop()))
    with torch.no_grad():
        for unit in model.units:
            for key, value in values.get(unit.spec.name, {}).items():
                getattr(unit, key).copy_(value.expand_as(getattr(unit, key)))
    return model.eval(), rows


def layer_node(
    label: str, row: Row, before: str, shape: tuple[int, ...], values: dict[str, dict[str, Tensor]]
) -> list[NirNode]:
    """A layer of torch as a node."""
    s, op = row.layer, row.op
    if op in ("identity", "dropout"):
        return [NirNode(name=label, kind="Pass", sources=(before,))]
    if op == "flatten":
        return [NirNode(name=label, kind="Flatten", sources=(before,), dims=(0, -1))]
    if op == "avg_pool" and len(shape) == 3:
        spread: dict[str, Any] = {
            k: tuple(s[k] * 2 if len(s[k]) == 1 else s[k]) for k in ("kernel", "stride", "padding")
        }
        return [NirNode(name=label, kind="AvgPool2d", sources=(before,), **spread)]
    if op in ("linear", "conv1d", "conv2d"):
        if s.get("padding_mode", "zeros") != "zeros":
            raise ConversionError(f"{row.name}: padding_mode {s['padding_mode']!r} has no node in NIR")
        weight = row.tensors["weight"]
        values[label] = dict(row.tensors)
        more: dict[str, Any] = {k: tuple(s[k]) for k in ("stride", "padding", "dilation")} if op != "linear" else {}
        more |= {"groups": s["groups"]} if op != "linear" else {}
        kind = {"linear": "Affine" if s["bias"] else "Linear", "conv1d": "Conv1d", "conv2d": "Conv2d"}[op]
        size = tuple(weight.shape)
        return [NirNode(name=label, kind=kind, sources=(before,), shape=size, bias="bias" in row.tensors, **more)]
    raise ConversionError(f"{row.name} ({row.kind}) has no node in NIR, as which Norse's networks are kept")


def norse_cell_node(
    name: str, label: str, module: Any, before: str, shape: tuple[int, ...], values: dict[str, dict[str, Tensor]]
) -> list[NirNode]:
    """A cell of Norse as a node, with its weights as nodes of their own where it has some."""
    kind = type(module).__name__
    who = f"{name} (norse {kind})"
    if kind not in KNOWN:
        raise ConversionError(f"{who} has no equal here; known: {', '.join(KNOWN)}")
    p, dt, ours = module.p, float(module.dt), KNOWN[kind]
    if getattr(getattr(p, "reset_method", None), "__name__", "reset_value") != "reset_value":
        raise ConversionError(f"{who}: it subtracts its threshold; a cell that is reset to v_reset has an equal here")
    found: dict[str, Tensor] = {}
    for key in CONSTANTS[ours]:
        if key in PARAMETERS:
            found[key] = torch.as_tensor(getattr(p, PARAMETERS[key], 0.0)).float()
        elif key.startswith("tau"):
            found[key] = 1.0 / torch.as_tensor(p.tau_syn_inv if key == "tau_syn" else p.tau_mem_inv).float()
        elif key == "r":
            found[key] = torch.ones(())
    if "w_in" in CONSTANTS[ours]:
        found["w_in"] = found["tau_syn"] / dt
    if bool((found.get("v_leak", torch.zeros(())) != 0).any()):
        raise ConversionError(f"{who}: v_leak is not 0, from where Norse's membranes begin and NIR's do not")
    if not kind.startswith("LIFRecurrent"):
        values[label] = found
        return [NirNode(name=label, kind=ours, sources=(before,), shape=shape)]
    into, back = module.input_weights.detach(), module.recurrent_weights.detach()
    values |= {label: found, f"{label}_in": {"weight": into}, f"{label}_back": {"weight": back}}
    return [
        NirNode(name=f"{label}_in", kind="Linear", sources=(before,), shape=tuple(into.shape)),
        NirNode(name=label, kind=ours, sources=(f"{label}_in", f"{label}_back"), shape=(len(into),)),
        NirNode(name=f"{label}_back", kind="Linear", sources=(label,), shape=tuple(back.shape)),
    ]
