"""A network as a ``nir.NIRGraph``: of `NirGraph` models node by node, of `sequential` ones layer by layer.

`Unsayable` names every layer that NIR has no word for, and why. Nothing is written that computes something else.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_model_nir_graph.units import CONSTANTS, POOLS, WEIGHTED


class Unsayable(FastSNNError):
    """What NIR cannot say; `reasons` has one sentence per layer."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def graph_of(model: Any, dt: float = 1e-4) -> Any:
    """The graph; `dt` is the length of a step where the model itself has none."""
    kind = getattr(getattr(model, "spec", None), "name", type(model).__name__)
    if kind == "nir_graph":
        return of_nodes(model)
    if kind == "sequential":
        return of_layers(model, dt)
    raise Unsayable(
        [
            f"{kind}: NIR has neurons, linear layers, convolutions and pools, but no {kind}; nir_graph and sequential "
            "can be written"
        ]
    )


def nir_array(t: Tensor) -> np.ndarray:
    """A tensor as NIR keeps it."""
    return t.detach().cpu().to(torch.float32).numpy().copy()


def of_nodes(model: Any) -> Any:
    """A `NirGraph`, node by node; ``Pass`` nodes of subgraphs are left out and their edges joined."""
    import nir

    spec, shapes = model.spec, model.spec.shapes()
    passes = {n.name: n for n in spec.nodes if n.kind == "Pass"}

    def origins(source: str) -> list[str]:
        return [o for s in passes[source].sources for o in origins(s)] if source in passes else [source]

    nodes: dict[str, Any] = {"input": nir.Input(np.array(spec.input))}
    edges = []
    for unit in model.units:
        node = unit.spec
        if node.name in passes:
            continue
        before = next((shapes[s] for s in node.sources if (s, node.name) not in model.late), spec.input)
        nodes[node.name] = node_of(unit, before)
        edges += [(o, node.name) for s in node.sources for o in origins(s)]
    end = "output"
    while end in nodes:
        end += "_"
    nodes[end] = nir.Output(np.array(shapes[spec.output]))
    edges += [(o, end) for o in origins(spec.output)]
    return nir.NIRGraph(nodes, edges, metadata={}, type_check=False)


def fold_r(graph: Any) -> None:
    """Move r of LI and LIF nodes into the weights in front, where those feed nothing else: readers differ in what they
    make of r (Norse leaves it out), and r (W x + b) is (r W) x + r b."""
    for name, node in graph.nodes.items():
        if type(node).__name__ not in ("LI", "LIF"):
            continue
        before = [a for a, b in graph.edges if b == name]
        alone = all(sum(a == s for a, _ in graph.edges) == 1 for s in before)
        if not alone or not all(type(graph.nodes[s]).__name__ in WEIGHTED for s in before):
            continue
        r = node.r.reshape(node.r.shape[0], -1)
        if (r != r[:, :1]).any():  # not the same for all places of a channel
            continue
        for source in before:
            part = graph.nodes[source]
            part.weight = part.weight * r[:, 0].reshape(-1, *[1] * (part.weight.ndim - 1))
            if getattr(part, "bias", None) is not None:
                part.bias = part.bias * r[:, 0]
        node.r = np.ones_like(node.r)


def node_of(unit: Any, before: tuple[int, ...]) -> Any:
    """One node."""
    import nir

    s, kind = unit.spec, unit.kind
    if kind in WEIGHTED:
        weight = nir_array(unit.weight)
        bias = None if unit.bias is None else nir_array(unit.bias)
        if kind in ("Linear", "Affine"):
            return nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
        bias = np.zeros(len(weight), dtype=np.float32) if bias is None else bias
        if kind == "Conv1d":
            return nir.Conv1d(before[1], weight, s.stride[0], s.padding[0], s.dilation[0], s.groups, bias)
        return nir.Conv2d(tuple(before[1:]), weight, s.stride, s.padding, s.dilation, s.groups, bias)
    if kind in POOLS:
        return getattr(nir, kind)(np.array(s.kernel), np.array(s.stride), np.array(s.padding))
    if kind == "Flatten":
        return nir.Flatten({"input": np.array(before)}, *s.dims)
    return getattr(nir, kind)(**{name: nir_array(unit.get_buffer(name)) for name in CONSTANTS[kind]})


def of_layers(model: Any, dt: float) -> Any:
    """A `sequential` network; heights of spikes go into the weights behind them."""
    import nir

    reasons, nodes, height = [], list[Any](), 1.0
    for i, (layer, module, before) in enumerate(zip(model.spec.layers, model.layers, model.spec.shapes())):
        who = f"layers[{i}] ({layer.op})"
        try:
            made, height = layer_nodes(layer, module, before, height, dt)
            nodes += made
        except Unsayable as reason:
            reasons.append(f"{who}: {reason}")
    if reasons:
        raise Unsayable(reasons)
    shape_out = np.array(model.spec.shapes()[-1])
    if height != 1.0:
        nodes.append(nir.Scale(np.full(tuple(shape_out), height, dtype=np.float32)))
    names = ["input", *(f"{i}_{type(n).__name__.lower()}" for i, n in enumerate(nodes)), "output"]
    table = dict(zip(names, [nir.Input(np.array(model.spec.input)), *nodes, nir.Output(shape_out)]))
    return nir.NIRGraph(table, list(pairwise(names)), metadata={}, type_check=False)


def layer_nodes(layer: Any, module: Any, before: tuple[int, ...], height: float, dt: float) -> tuple[list[Any], float]:
    """``(nodes, height of the spikes behind them)`` of one layer whose inputs are `height` times what NIR carries."""
    import nir

    op = layer.op
    if layer.bits:
        raise Unsayable(["INT8 weights; NIR's are floats: export the bundle that this one was made of"])
    if op == "linear":
        if len(before) != 1:
            raise Unsayable([f"a linear layer over {list(before)}; NIR's reads one dimension"])
        weight = nir_array(module.weight * height)
        return [nir.Linear(weight) if module.bias is None else nir.Affine(weight, nir_array(module.bias))], 1.0
    if op in ("conv1d", "conv2d"):
        if module.padding_mode != "zeros":
            raise Unsayable([f"padding_mode {module.padding_mode!r}; NIR pads with zeros"])
        weight = nir_array(module.weight * height)
        bias = np.zeros(len(weight), dtype=np.float32) if module.bias is None else nir_array(module.bias)
        sizes = (module.stride, module.padding, module.dilation)
        if op == "conv1d":
            return [nir.Conv1d(before[1], weight, *(s[0] for s in sizes), module.groups, bias)], 1.0
        return [nir.Conv2d(tuple(before[1:]), weight, *sizes, module.groups, bias)], 1.0
    if op == "flatten":
        return [nir.Flatten({"input": np.array(before)}, 0, -1)], height
    if op == "avg_pool" and len(before) == 3:
        rows = [np.array(v if isinstance(v, tuple) else (v, v)) for v in (module.kernel, module.stride, module.padding)]
        return [nir.AvgPool2d(*rows)], height
    if op in ("identity", "dropout", "channel_dropout"):
        return [], height
    if op == "spikes":
        return [neuron_nodes(layer, module, before, height, dt)], float(module.neuron.theta)
    if op in ("relu", "gelu", "silu", "tanh", "sigmoid", "batch_norm", "max_pool"):
        raise Unsayable(
            [f"NIR has no {op}" + ("; fold it into the layer before (convert does)" if op == "batch_norm" else "")]
        )
    raise Unsayable([f"NIR has no {op}"])


def neuron_nodes(layer: Any, module: Any, before: tuple[int, ...], height: float, dt: float) -> Any:
    """A lif with hard reset as NIR's LIF.

        u = (1 − 1/τ) v + x, s = 1[u ≥ θ]   =   v + dt/τ' (r x − v), s = 1[v > θ⁻],   τ' = τ dt, r = τ

    θ⁻ is the float32 number below θ, so that a membrane exactly at θ fires in both.
    """
    import nir

    neuron = layer.neuron
    if neuron.name != "lif":
        raise Unsayable(
            [
                f"neuron {neuron.name} counts spikes in thresholds taken from the data; NIR's thresholds are constants "
                "(lif can be written)"
            ]
        )
    if neuron.reset_delay:
        raise Unsayable(["lif with reset_delay resets a token later; NIR resets at once"])
    if not neuron.hard_reset:
        raise Unsayable(
            ["lif subtracts its threshold after a spike; NIR sets v to v_reset (hard_reset = true can be written)"]
        )
    if height != 1.0:
        raise Unsayable([f"spikes of height {height:g} reach it with no weights in between"])
    theta = np.float32(float(module.neuron.theta))

    def full(value: float) -> np.ndarray:
        return np.full(tuple(before), value, dtype=np.float32)

    return nir.LIF(
        tau=full(neuron.tau * dt), r=full(neuron.tau), v_leak=full(0.0),
        v_threshold=full(float(np.nextafter(theta, np.float32(-np.inf)))), v_reset=full(0.0),
    )  # fmt: skip
