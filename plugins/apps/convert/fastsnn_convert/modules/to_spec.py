"""A converted network as a spec: `sequential` where it is a chain, `graph` otherwise, with its weights in place.

Only what a spec can say is written: layers, calls on `graph`'s list, tensors, and modules that carry a ``.spec`` of
their own. Whatever else is in a network is named, with what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_conversion.time_folding import TimeFoldedSite, name_states
from fastsnn_convert.modules.functional_modules import as_call
from fastsnn_model_graph import Graph, GraphModule, Input, Network, Node, Ref, Step
from fastsnn_model_graph.text import DTYPES, call_text
from fastsnn_model_sequential import Layer, Sequential, SequentialModule, describe


def as_calls(network: Network) -> Network:
    """Modules without weights that no layer says as function calls; in place, the network computes the same."""
    steps = []
    for step in network.steps:
        if step.kind == "module" and describe(network.held(step.target)) is None:
            step = as_call(step, network.held) or step
        steps.append(step)
    network.rewire(steps, network.output)
    return network


def layers_of_modules(network: Network) -> tuple[dict[str, Layer], list[str]]:
    """The layer of every module, and the modules that have none."""
    found: dict[str, Layer] = {}
    missing = []
    for step in network.steps:
        if step.kind != "module" or step.target in found:
            continue
        module = network.held(step.target)
        if (layer := describe(module)) is None:
            missing.append(f"module {step.target} ({type(module).__name__})")
        else:
            found[step.target] = layer
    return found, missing


def chained_steps(network: Network) -> list[Step] | None:
    """The module steps of a network that is one after the other, or None."""
    first, *rest = network.steps
    if first.kind != "input" or not rest:
        return None
    at, seen = first.name, set()
    for step in rest:
        if step.kind != "module" or step.args != (Ref(at),) or step.kwargs or step.target in seen:
            return None
        seen.add(step.target)
        at = step.name
    return rest if network.output == Ref(at) else None


def obstacles(network: Network) -> list[str]:
    """Why a network cannot be written as a spec: every part that has no form in it; empty when it can."""
    says = layers_of_modules(network)[1]
    for step in network.steps:
        if step.kind == "call" and call_text(step) is None:
            says.append(f"call {step.target}")
        if step.kind == "module" and (step.kwargs or not all(isinstance(a, Ref) for a in step.args)):
            says.append(f"module {step.target}, which is called with more than tensors")
        if step.kind == "tensor" and str(network.held(step.target).dtype).removeprefix("torch.") not in DTYPES:
            says.append(f"tensor {step.target} of type {network.held(step.target).dtype}")
    if not sayable(network.output):
        says.append(f"an output of type {type(network.output).__name__} (a tensor, or a tuple of them, can be written)")
    return list(dict.fromkeys(says))


def sayable(output: Any) -> bool:
    """Is an output a value, or nested tuples of values?"""
    return (
        isinstance(output, Ref)
        or output is None
        or (isinstance(output, tuple | list) and len(output) > 0 and all(map(sayable, output)))
    )


def module_with_spec(network: Network, inputs: Sequence[Tensor]) -> nn.Module:
    """The network as a module that carries its spec, over the same modules (not copies); see `obstacles` first."""
    layers = layers_of_modules(network)[0]
    steps = chained_steps(network)
    if steps is not None and len(inputs) == 1:
        spec = Sequential(input=tuple(inputs[0].shape[1:]), layers=tuple(layers[s.target] for s in steps))
        with torch.random.fork_rng(devices=[]):
            chained = SequentialModule(spec)
        chained.layers = nn.ModuleList(network.held(s.target) for s in steps)
        return finished(chained)
    nodes = tuple(step_node(network, step, layers) for step in network.steps if step.kind != "input")
    names = [step.name for step in network.steps if step.kind == "input"]
    tokens = {step.args[0].name: layers[step.target].features for step in network.steps if embeds(step, layers)}
    given = tuple(
        Input(name=n, shape=tuple(x.shape[1:]), tokens=None if x.is_floating_point() else tokens.get(n, 2))
        for n, x in zip(names, inputs)
    )
    graph = Graph(inputs=given, nodes=nodes, output=output_text(network.output))
    with torch.random.fork_rng(devices=[]):
        module = GraphModule(graph)
    module.net = network.net
    return finished(module)


def finished(module: Any) -> nn.Module:
    """Labels of the sites, evaluation mode, and what bundles look for."""
    name_states(module)
    for name in ("meta", "sections"):
        setattr(module, name, {})
    return module.eval()


def embeds(step: Step, layers: dict[str, Layer]) -> bool:
    """Is this step an embedding?"""
    return step.kind == "module" and step.target in layers and layers[step.target].op == "embedding"


def step_node(network: Network, step: Step, layers: dict[str, Layer]) -> Node:
    """A step as a node."""
    path = step.target if step.kind != "call" and step.target != step.name else None
    if step.kind == "call":
        return Node(name=step.name, call=call_text(step))
    if step.kind == "tensor":
        held = network.held(step.target)
        kind = str(held.dtype).removeprefix("torch.")
        return Node(
            name=step.name, tensor=tuple(held.shape), dtype=kind, learnt=isinstance(held, nn.Parameter), path=path
        )
    args = ", ".join(ref.name for ref in step.args)
    return Node(name=step.name, layer=layers[step.target], args=args, path=path)


def output_text(output: Any) -> str:
    """What comes out, as text."""
    if isinstance(output, Ref):
        return output.name
    if isinstance(output, tuple | list):
        return f"({', '.join(map(output_text, output))},)"
    return repr(output)


def site_modules(model: nn.Module) -> dict[str, TimeFoldedSite]:
    """Spike sites of a converted network by module name, in the order of their making."""
    return {name: m for name, m in model.named_modules() if isinstance(m, TimeFoldedSite) and m.neuron is not None}
