"""A network with branches as a spec: named nodes, each a layer, an allowed call, or a tensor."""

from __future__ import annotations

import keyword
from typing import Any

import torch
from attrs import evolve, frozen
from torch import nn

from fastsnn_core import Model, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_events.runtime import Switchable
from fastsnn_model_graph.steps import Network, Ref, Step, refs
from fastsnn_model_graph.text import DTYPES, CallError, arguments, parse_call
from fastsnn_model_sequential import Layer, fit_thresholds
from fastsnn_model_sequential.quantised import IntegerForm, layer_in_int8
from fastsnn_modules.torch_calls import TorchCalls

__version__ = "0.1.0"
__all__ = ["CallError", "Graph", "GraphModule", "Input", "Network", "Node", "Ref", "Step", "fastsnn_models"]

SPIKES = {"op": "spikes", "features": 6, "neuron": {"kind": "adaptive_threshold"}}
RESIDUAL: tuple[dict[str, Any], ...] = (
    {"name": "s", "layer": SPIKES, "args": "x"},
    {"name": "f", "path": "block.f", "layer": {"op": "linear", "features": 6, "size": 6}, "args": "s"},
    {"name": "scale", "tensor": [6]},
    {"name": "scaled", "call": "mul(f, scale)"},
    {"name": "y", "call": "add(x, scaled)"},
)


@frozen
class Input:
    """One input: its name, the shape of one sample, and how many tokens there are where it holds token ids."""

    name: str = param(doc="what nodes call it")
    shape: tuple[int, ...] = param(ge=1, doc="of one sample")
    tokens: int | None = param(None, ge=1, doc="number of token ids; left out, the input is numbers")


@frozen
class Node:
    """One value: a `layer` of `args`, a `call`, or a stored `tensor` of that shape."""

    name: str = param(doc="what other nodes call it; a Python name")
    layer: Layer | None = param(None, doc="a layer, with features given")
    args: str | None = param(None, doc="what the layer is applied to: x")
    call: str | None = param(None, doc="a function or method of other nodes: add(x, y), x.transpose(1, 2)")
    tensor: tuple[int, ...] | None = param(None, doc="shape of a stored tensor")
    dtype: str = param("float32", choices=tuple(DTYPES), doc="of the tensor")
    learnt: bool = param(True, doc="the tensor is a parameter")
    path: str | None = param(None, doc="where the weights live, if not under the name; shared by equal paths")

    def __attrs_post_init__(self) -> None:
        if sum(v is not None for v in (self.layer, self.call, self.tensor)) != 1:
            raise FastSNNError(f"node {self.name!r} is one of layer, call and tensor")
        if not self.name.isidentifier() or keyword.iskeyword(self.name):
            raise FastSNNError(f"node {self.name!r} needs a name that Python would accept")
        if not all(part.isidentifier() or part.isdigit() for part in self.place.split(".")):
            raise FastSNNError(f"node {self.name!r}: path {self.place!r} is no dotted name")

    @property
    def place(self) -> str:
        """Where its weights live."""
        return self.path or self.name

    def step(self) -> Step:
        """What it does."""
        if self.call is not None:
            return parse_call(self.call, self.name)
        if self.tensor is not None:
            return Step(self.name, "tensor", self.place)
        return Step(self.name, "module", self.place, arguments(self.args or ""))

    def build(self) -> Any:
        """Its module, parameter or buffer; None for a call."""
        if self.layer is not None:
            return self.layer.build()
        if self.tensor is None:
            return None
        dtype = DTYPES[self.dtype]
        fresh = torch.randn(self.tensor) * 0.02 if dtype.is_floating_point else torch.zeros(self.tensor)
        return nn.Parameter(fresh.to(dtype)) if self.learnt and dtype.is_floating_point else fresh.to(dtype)


@frozen
class Graph(Model):
    """Values by name: each node is f(values before it).  inputs [B, *shape] -> output, or [B, T, …] with time.

    Nodes are in order. Layers are those of `sequential`; calls are on a list (``fastsnn_model_graph.text``) and parsed,
    never evaluated; weights are ``net.<path>.<name>``. As there, the network is applied to every t and neurons carry
    their state over T. Errors: a name used before it is made, a call that is not on the list, a node of no kind.
    """

    name = "graph"
    inputs: tuple[Input, ...] = param(doc="what goes in, in order", draw=(({"name": "x", "shape": [6]},),))
    nodes: tuple[Node, ...] = param(doc="every value, in order", draw=(RESIDUAL,))
    output: str = param(doc="what comes out: a name, or a tuple of names", draw=("y",))

    def __attrs_post_init__(self) -> None:
        if not self.inputs:
            raise FastSNNError("a graph needs at least one input")
        known: set[str] = set()
        for step in self.steps():
            if step.name in known:
                raise FastSNNError(f"two nodes are called {step.name!r}")
            if unknown := [n for n in step.sources() if n not in known]:
                raise FastSNNError(f"node {step.name!r} uses {unknown[0]!r}, which nothing before it makes")
            known.add(step.name)
        if unknown := [ref.name for ref in refs(arguments(self.output)) if ref.name not in known]:
            raise FastSNNError(f"output {unknown[0]!r} is no node")

    def promises(self, flag: str) -> bool:
        """INT8 weights have no gradient."""
        whole = any(node.layer is not None and node.layer.bits for node in self.nodes)
        return super().promises(flag) and not (flag == "differentiable" and whole)

    def steps(self) -> list[Step]:
        """Inputs and nodes as what is run."""
        return [Step(i.name, "input") for i in self.inputs] + [node.step() for node in self.nodes]

    def build(self) -> GraphModule:
        """The network."""
        return GraphModule(self)

    def example(self, batch: int) -> Any:
        """Numbers in [0, 1), or token ids; a tuple where there are several inputs."""
        generator = torch.Generator().manual_seed(7)
        found = [
            torch.rand(batch, *i.shape, generator=generator)
            if i.tokens is None
            else torch.randint(0, i.tokens, (batch, *i.shape), generator=generator)
            for i in self.inputs
        ]
        return found[0] if len(found) == 1 else tuple(found)


class GraphModule(IntegerForm, TorchCalls, Switchable, Network):
    """The network of a `Graph`."""

    def __init__(self, spec: Graph) -> None:
        held: dict[str, Any] = {}
        for node in spec.nodes:
            if node.call is None and node.place not in held:
                try:
                    held[node.place] = node.build()
                except ValueError as error:
                    raise FastSNNError(f"node {node.name!r}: {error}") from None
        found = arguments(spec.output)
        super().__init__(
            spec.steps(), held, found[0] if len(found) == 1 else found, tuple(len(i.shape) + 1 for i in spec.inputs)
        )
        self.spec = spec
        fit_thresholds(self, spec.example(8))

    def folded(self) -> GraphModule:
        """A copy for inference, with batch norms folded into the layers before them (see `fold_norms_of_graph`)."""
        from fastsnn_model_graph.folding import fold_norms_of_graph

        found: GraphModule = fold_norms_of_graph(self)
        return found

    def with_int8(self, chosen: set[str]) -> Graph:
        """The spec with INT8 weights in the layers of these names."""
        nodes = []
        for node in self.spec.nodes:
            module = self.held(node.place) if node.layer is not None else None
            layer: Any = layer_in_int8(node.layer, module, f"net.{node.place}", chosen) if module else node.layer
            nodes.append(evolve(node, layer=layer))
        return evolve(self.spec, nodes=tuple(nodes))


@hookimpl
def fastsnn_models() -> list[type[Model]]:
    """This plugin's models."""
    return [Graph]
