"""Batch norms of a graph folded into the layers before them: the network that is deployed."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import attrs
from torch import nn

from fastsnn_conversion.norm_folding import fold_back
from fastsnn_core.site import SpikeSite
from fastsnn_model_graph.steps import Ref, put_at, refs
from fastsnn_model_graph.text import arguments
from fastsnn_model_sequential import Layer
from fastsnn_model_sequential.folding import passes


def fold_norms_of_graph(model: Any) -> Any:
    """A copy of a `GraphModule` without its batch norms, in evaluation mode: a x + b went into W and b before it.

    A norm is folded where the value it reads has no other reader and comes from a projection, through max pools (where
    a > 0) and average pools, and where neither shares its weights with another node. Others stay, as do those inside
    of blocks. The same values but for rounding, so a potential just at its threshold may spike otherwise. The copy is
    in the count runtime.
    """
    old = copy.deepcopy(model).eval()
    for module in old.modules():
        if isinstance(module, SpikeSite):
            module.coding = None
    nodes = list(old.spec.nodes)
    at = {node.name: i for i, node in enumerate(nodes)}
    readers = Counter(source for step in old.spec.steps() for source in step.sources())
    readers.update(ref.name for ref in refs(arguments(old.spec.output)))
    owners = Counter(node.place for node in nodes if node.call is None)
    for i, node in enumerate(nodes):
        norm = old.held(node.place) if node.layer is not None and owners[node.place] == 1 else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        j = only_source(node, at, readers)
        while j is not None and nodes[j].layer is not None and passes(old.held(nodes[j].place), norm):
            j = only_source(nodes[j], at, readers)
        if j is None or nodes[j].layer is None or owners[nodes[j].place] > 1:
            continue
        if fold_back(norm, old.held(nodes[j].place)):
            put_at(old.net, node.place, nn.Identity())
            nodes[i] = attrs.evolve(node, layer=Layer(op="identity"))
            nodes[j] = attrs.evolve(nodes[j], layer=attrs.evolve(nodes[j].layer, bias=True))
    new = type(model)(attrs.evolve(old.spec, nodes=tuple(nodes))).eval()
    new.load_state_dict(old.state_dict(), assign=True)  # in the types and places that they have
    for name in ("meta", "sections"):
        if hasattr(model, name):
            setattr(new, name, copy.deepcopy(getattr(model, name)))
    return new


def only_source(node: Any, at: dict[str, int], readers: Counter[str]) -> int | None:
    """The node whose value alone `node` reads, where nobody else reads it; else None."""
    args = node.step().args
    if len(args) != 1 or not isinstance(args[0], Ref) or readers[args[0].name] != 1:
        return None
    return at.get(args[0].name)
