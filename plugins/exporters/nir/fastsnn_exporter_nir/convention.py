"""Between ``nir.NIRGraph`` and the rows of a `NirGraph` spec: subgraphs laid flat, sizes in one form, order kept.

What NIR leaves open, and what is meant here (`fastsnn_model_nir_graph` has the equations):

    dt             not in the file: given when reading; a step of the input is dt seconds
    IF, I          r x is added per step, whatever dt is (as snnTorch, Norse and Sinabs do; r = 1/dt,
                   which SpikingJelly writes for the same, counts as 1)
    v_reset        the value after a spike (left out: 0)
    edges          into one node are added up; one that closes a cycle is a step late
    Flatten        dimensions count without the batch, unless the node's own input_type says otherwise
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastsnn_core.errors import FastSNNError
from fastsnn_model_nir_graph.units import CONSTANTS, KINDS, POOLS, WEIGHTED

Values = dict[str, dict[str, np.ndarray]]
END = "output"


def nodes_of(graph: Any) -> tuple[list[dict[str, Any]], Values, tuple[int, ...], str]:
    """``(rows of Node, numbers by node, shape of the input, name of the output)``."""
    flat: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    lay_flat(graph, "", flat, edges, 0)
    inputs = [n for n, node in flat.items() if nir_name(node) == "Input" and "." not in n]
    outputs = [n for n, node in flat.items() if nir_name(node) == "Output" and "." not in n]
    if len(inputs) != 1 or len(outputs) != 1:
        found = f"inputs {', '.join(inputs) or 'none'}; outputs {', '.join(outputs) or 'none'}"
        raise FastSNNError(f"one Input and one Output are wanted; the graph has {found}")
    begin, end = inputs[0], outputs[0]
    if any(target == begin for _, target in edges):
        raise FastSNNError(f"an edge leads into the Input {begin!r}")
    shape = shape_numbers(flat[begin].input_type["input"])
    if not shape or min(shape) < 1:
        raise FastSNNError(f"the Input {begin!r} does not say its shape ({flat[begin].input_type['input']})")
    label = {begin: "input"} | {n: n for n in flat if n != begin}
    if "input" in flat and begin != "input":
        label["input"] = "input_"
    sources: dict[str, list[str]] = {n: [] for n in flat}
    for a, b in edges:
        if label[a] in sources[b]:
            raise FastSNNError(f"the edge {a} → {b} is there twice")
        sources[b].append(label[a])
    rows, values = [], Values()
    for name, node in flat.items():
        if name != begin:
            row, numbers = node_row(label[name], node)
            if not sources[name]:
                raise FastSNNError(f"node {name!r} ({nir_name(node)}) has no edge into it")
            rows.append(row | {"sources": tuple(sources[name])})
            values[label[name]] = numbers
    return rows, values, shape, label[end]


def nir_name(node: Any) -> str:
    """NIR's name of the node."""
    return type(node).__name__


def lay_flat(graph: Any, prefix: str, flat: dict[str, Any], edges: list[tuple[str, str]], depth: int) -> None:
    """Every node under a dotted name; edges of a subgraph end at its inputs and begin at its outputs."""
    if depth > 32:
        raise FastSNNError("subgraphs lie more than 32 deep in one another")
    doors: dict[str, tuple[str, str]] = {}
    for name, node in graph.nodes.items():
        if nir_name(node) == "NIRGraph":
            lay_flat(node, f"{prefix}{name}.", flat, edges, depth + 1)
            inner = {k: [n for n, x in node.nodes.items() if nir_name(x) == k] for k in ("Input", "Output")}
            if len(inner["Input"]) != 1 or len(inner["Output"]) != 1:
                raise FastSNNError(f"subgraph {prefix}{name} needs one Input and one Output, it has {inner}")
            doors[name] = (f"{prefix}{name}.{inner['Input'][0]}", f"{prefix}{name}.{inner['Output'][0]}")
        else:
            flat[f"{prefix}{name}"] = node
            doors[name] = (f"{prefix}{name}", f"{prefix}{name}")
    for a, b in graph.edges:
        if missing := [n for n in (a, b) if n not in graph.nodes]:
            raise FastSNNError(f"the edge {a} → {b} is of a node {missing[0]!r}, which is not there")
        edges.append((doors[a][1], doors[b][0]))


def shape_numbers(value: Any) -> tuple[int, ...]:
    """A shape as whole numbers."""
    if value is None:
        return ()
    found = np.atleast_1d(np.asarray(value))
    if (
        found.ndim != 1
        or found.dtype.kind not in "iuf"
        or (found.dtype.kind == "f" and not np.all(found == np.round(found)))
    ):
        raise FastSNNError(f"{value!r} is no list of whole numbers")
    return tuple(int(n) for n in found)


def node_row(name: str, node: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One node's row and numbers; what is not known is refused by name."""
    kind = nir_name(node)
    if kind in ("Input", "Output"):
        return {"name": name, "kind": "Pass"}, {}
    if kind not in KINDS:
        raise FastSNNError(
            f"node {name!r} is of kind {kind}; known: {', '.join(k for k in KINDS if k not in ('Pass',))}"
        )
    row: dict[str, Any] = {"name": name, "kind": kind}
    try:
        if kind in WEIGHTED:
            weight = np.asarray(node.weight)
            numbers = {"weight": weight}
            bias = getattr(node, "bias", None)
            if bias is not None and np.asarray(bias).ndim and np.asarray(bias).size:
                numbers["bias"] = np.asarray(bias)
                if numbers["bias"].shape != weight.shape[:1]:
                    raise FastSNNError(
                        f"node {name!r} ({kind}): bias {list(numbers['bias'].shape)} for a weight {list(weight.shape)}"
                    )
            row |= {"shape": tuple(map(int, weight.shape)), "bias": "bias" in numbers}
            if kind.startswith("Conv"):
                dims = int(kind[4])
                row |= {
                    "stride": per_axis(node.stride, dims), "dilation": per_axis(node.dilation, dims),
                    "groups": int(np.asarray(node.groups)), "padding": padding(name, node, weight, dims),
                }  # fmt: skip
            return row, numbers
        if kind in POOLS:
            row |= {
                k: per_axis(getattr(node, {"kernel": "kernel_size"}.get(k, k)), 2)
                for k in ("kernel", "stride", "padding")
            }
            return row, {}
        if kind == "Flatten":
            return row | {"dims": flatten_dims(node)}, {}
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, FastSNNError):
            raise
        raise FastSNNError(f"node {name!r} ({kind}) is damaged: {error}") from None
    numbers = {key: np.asarray(getattr(node, key)) for key in CONSTANTS[kind]}
    if odd := [k for k, v in numbers.items() if v.dtype.kind not in "fiub"]:
        raise FastSNNError(f"node {name!r} ({kind}): {odd[0]} holds no numbers")
    shapes = {v.shape for v in numbers.values()}
    if len(shapes) > 1:
        raise FastSNNError(
            f"node {name!r} ({kind}): its constants have different shapes, "
            + ", ".join(f"{k} {list(v.shape)}" for k, v in numbers.items())
        )
    return row | {"shape": tuple(map(int, shapes.pop()))}, numbers


def per_axis(value: Any, dims: int) -> tuple[int, ...]:
    """One number for every dimension."""
    found = shape_numbers(value)
    return found * dims if len(found) == 1 else found


def padding(name: str, node: Any, weight: np.ndarray, dims: int) -> tuple[int, ...]:
    """Padding in numbers."""
    said = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
    if not isinstance(said, str):
        return per_axis(said, dims)
    if said == "valid":
        return (0,) * dims
    whole = [d * (k - 1) for k, d in zip(weight.shape[2:], per_axis(node.dilation, dims))]
    if said != "same" or any(n % 2 for n in whole) or any(s != 1 for s in per_axis(node.stride, dims)):
        raise FastSNNError(
            f"node {name!r}: padding {said!r} with an even window pads one side more, which is not supported"
        )
    return tuple(n // 2 for n in whole)


def flatten_dims(node: Any) -> tuple[int, int]:
    """First and last dimension, counted without the batch.

    Writers disagree on whether start_dim = 1 counts a batch; the node's own shapes tell: its input_type never holds
    one.
    """
    first, last = int(np.asarray(node.start_dim)), int(np.asarray(node.end_dim))
    shape = shape_numbers(node.input_type["input"]) if node.input_type.get("input") is not None else ()
    if first == 1 and last == -1 and len(shape) > 1:
        out = shape_numbers(node.output_type["output"]) if node.output_type.get("output") is not None else ()
        if len(out) == 1:
            return 0, -1
    return first, last
