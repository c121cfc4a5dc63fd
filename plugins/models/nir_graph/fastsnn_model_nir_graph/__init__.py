"""Networks in the terms of NIR, the Neuromorphic Intermediate Representation: nodes, edges, constants, dt."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Model, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_core.moved import renamed
from fastsnn_model_nir_graph import order, units
from fastsnn_modules.inputs import StateError, belongs, check_reset_mask, check_state_kind, no_train, numeric
from fastsnn_modules.shown import model_html
from fastsnn_modules.torch_calls import TorchCalls

__version__ = "0.1.0"
__all__ = ["NirGraph", "NirGraphModule", "NirNode", "fastsnn_models"]

DRAWN: tuple[tuple[dict[str, Any], ...], ...] = (
    (
        {"name": "w", "kind": "Affine", "shape": [4, 6], "bias": True, "sources": ["input"]},
        {"name": "lif", "kind": "LIF", "shape": [4], "sources": ["w", "back"]},
        {"name": "back", "kind": "Linear", "shape": [4, 4], "sources": ["lif"]},
        {"name": "v", "kind": "Linear", "shape": [3, 4], "sources": ["lif"]},
        {"name": "y", "kind": "LI", "shape": [3], "sources": ["v"]},
    ),
    (
        {"name": "w", "kind": "Linear", "shape": [5, 6], "sources": ["input"]},
        {"name": "s", "kind": "CubaLIF", "shape": [5], "sources": ["w"]},
        {"name": "y", "kind": "Linear", "shape": [2, 5], "sources": ["s"]},
    ),
)


@frozen
class NirNode:
    """A node of NIR: its kind, the nodes whose outputs it adds up, and the sizes that its kind has."""

    name: str = param(doc="what sources call it")
    kind: str = param(choices=units.KINDS, doc="as NIR calls it; Pass hands on (inputs and outputs of subgraphs)")
    sources: tuple[str, ...] = param((), doc="nodes whose outputs are added up")
    shape: tuple[int, ...] = param((), ge=1, doc="of its weight, or of its neurons")
    bias: bool = param(False, doc="Affine and convolutions add one")
    kernel: tuple[int, ...] = param((), ge=1, doc="window of a pool")
    stride: tuple[int, ...] = param((), ge=1, doc="step of a convolution or a pool")
    padding: tuple[int, ...] = param((), ge=0, doc="zeros on both sides")
    dilation: tuple[int, ...] = param((), ge=1, doc="spacing inside a convolution's window")
    groups: int = param(1, ge=1, doc="of a convolution")
    dims: tuple[int, ...] = param((), doc="first and last dimension that Flatten joins")

    def __attrs_post_init__(self) -> None:
        ranks = {"Linear": 2, "Affine": 2, "Conv1d": 3, "Conv2d": 4}
        if (rank := ranks.get(self.kind)) and len(self.shape) != rank:
            raise FastSNNError(
                f"node {self.name!r}: the weight of {self.kind} has {rank} dimensions, not {len(self.shape)}"
            )
        n = {"Conv1d": 1, "Conv2d": 2, "AvgPool2d": 2, "SumPool2d": 2}.get(self.kind)
        names = ("stride", "padding", "dilation") if self.kind.startswith("Conv") else ("kernel", "stride", "padding")
        for name in names if n else ():
            if len(getattr(self, name)) != n:
                raise FastSNNError(
                    f"node {self.name!r}: {name} of {self.kind} has {n} numbers, not {len(getattr(self, name))}"
                )
        if self.kind == "Flatten" and len(self.dims) != 2:
            raise FastSNNError(f"node {self.name!r}: Flatten needs dims = [first, last]")


@frozen
class NirGraph(Model):
    """y_t = f(x_t, state_{t−1}): every node once per step of length dt, edges into a node added up.

    x [B, T, *input] -> y [B, T, *output] (``[B, *input]`` is one step). Neurons are explicit Euler steps with a strict
    threshold and a reset to v_reset (`fastsnn_model_nir_graph.units`); an edge that closes a cycle is a step late.
    State in, state out: ``return_state=True``. Gradient: arctangent, reset detached. Source: Pedersen et al. 2024,
    Nature Communications 15, 8122 (NIR 1.0). Errors: unknown sources, shapes that do not fit, cycles without a neuron.
    """

    name = "nir_graph"
    input: tuple[int, ...] = param(ge=1, doc="shape of one sample", draw=((6,),))
    nodes: tuple[NirNode, ...] = param(doc="every node but the input; sources say what it reads", draw=DRAWN)
    output: str = param(doc="the node whose values come out", draw=("y",))
    dt: float = param(1e-3, gt=0.0, unit="seconds", doc="length of a step")

    def __attrs_post_init__(self) -> None:
        self.shapes()

    def arranged(self) -> tuple[list[str], set[tuple[str, str]]]:
        """Names in the order of computation, and the edges that are a step late."""
        sources: dict[str, tuple[str, ...]] = {"input": ()}
        for node in self.nodes:
            if node.name in sources:
                raise FastSNNError(f"two nodes are called {node.name!r}")
            if not node.sources and node.kind != "Input":
                raise FastSNNError(f"node {node.name!r} ({node.kind}) reads nothing")
            sources[node.name] = node.sources
        for name, rows in sources.items():
            if unknown := [s for s in rows if s not in sources]:
                raise FastSNNError(f"node {name!r} reads {unknown[0]!r}, which is no node")
        if self.output not in sources:
            raise FastSNNError(f"the output {self.output!r} is no node")
        kept = {n.name: n.kind in units.STATEFUL for n in self.nodes} | {"input": False}
        return order.arrange(sources, "input", kept)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample behind every node."""
        names, late = self.arranged()
        table = {n.name: n for n in self.nodes}
        found: dict[str, tuple[int, ...]] = {"input": self.input}
        for name in names:
            if name in table:
                node = table[name]
                here = {s: found[s] for s in node.sources if (s, name) not in late and s in found}
                if len(set(here.values())) > 1:
                    raise FastSNNError(f"node {name!r} adds up " + ", ".join(f"{s} {list(v)}" for s, v in here.items()))
                if not here:
                    raise FastSNNError(f"node {name!r} ({node.kind}) is not reached from the input")
                found[name] = units.after(node, next(iter(here.values())))
        for source, target in late:
            wanted = next(found[s] for s in table[target].sources if (s, target) not in late)
            if found[source] != wanted:
                raise FastSNNError(
                    f"node {target!r} adds up {source} {list(found[source])} and inputs of {list(wanted)}"
                )
        return found

    def build(self) -> NirGraphModule:
        """The network."""
        return NirGraphModule(self)

    def example(self, batch: int) -> Tensor:
        """Numbers in [0, 2) ``[batch, 12, *input]``."""
        return torch.rand(batch, 12, *self.input, generator=torch.Generator().manual_seed(7)) * 2


class NirGraphModule(TorchCalls):
    """The network of a `NirGraph`."""

    def __init__(self, spec: NirGraph) -> None:
        super().__init__()
        self.spec = spec
        self.order, self.late = spec.arranged()
        shapes, self.where = spec.shapes(), {n.name: i for i, n in enumerate(spec.nodes)}
        first = {n.name: next((shapes[s] for s in n.sources if s in shapes), spec.input) for n in spec.nodes}
        self.units = nn.ModuleList(units.Unit(node, spec.dt, first[node.name]) for node in spec.nodes)

    def _repr_html_(self) -> str:
        return model_html(self)

    def forward(self, x: Tensor, state: Any = None, *, reset: Tensor | None = None, return_state: bool = False) -> Any:
        """``[B, *input]`` or ``[B, T, *input]``; `reset` ``[B, T]`` marks first samples of new sequences."""
        x = numeric("the network", no_train("the network", x))
        x = x.to(self.dtype)
        rank = len(self.spec.input) + 1
        timed = x.ndim == rank + 1
        if x.ndim not in (rank, rank + 1) or tuple(x.shape[x.ndim - rank + 1 :]) != self.spec.input:
            wanted = ", ".join(map(str, self.spec.input))
            raise FastSNNError(f"the network takes [B, {wanted}] or [B, T, {wanted}], got {list(x.shape)}")
        x = x if timed else x[:, None]
        check_state_kind("the network", state, dict, "the dict that return_state=True gave")
        belongs("the network", state, len(x))
        check_reset_mask("the network", reset, x.shape[0], x.shape[1], x.device)
        fresh = self.start(x[:, 0] if x.shape[1] else x.new_zeros(len(x), *self.spec.input))
        if state is not None and state.keys() != fresh.keys():
            raise StateError(
                f"the network: the state is of {', '.join(state) or 'nothing'}; it keeps {', '.join(fresh) or 'none'}"
            )
        now, out = fresh if state is None else state, []
        for t in range(x.shape[1]):
            if reset is not None and bool(reset[:, t].any()):
                now = merged_state(reset[:, t], fresh, now)
            values, now = self.step(x[:, t], now)
            out.append(values[self.spec.output])
        if out:
            y = torch.stack(out, 1)
        else:
            y = x.new_zeros(len(x), 0, *self.spec.shapes()[self.spec.output])
        y = y if timed else y[:, 0]
        return (y, now) if return_state else y

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return next((t.dtype for t in self.state_dict().values() if t.is_floating_point()), torch.float32)

    def start(self, x: Tensor) -> dict[str, Any]:
        """The state before the first step of inputs like ``x [B, *input]``: silent neurons, and what they feed back."""
        shapes, found = self.spec.shapes(), dict[str, Any]()
        values: dict[str, Tensor] = {"input": torch.zeros_like(x)}
        for name in self.order:
            if name == "input":
                continue
            unit: Any = self.units[self.where[name]]
            if unit.kind in units.STATEFUL:
                values[name] = x.new_zeros(len(x), *shapes[name])
                found[name] = unit.start(x)
            elif self.late:
                given = [values[s] for s in unit.spec.sources if s in values]
                values[name] = unit(sum(given[1:], given[0]))[0].detach()
        return found | {f"{source} (last step)": values[source] for source, _ in sorted(self.late)}

    def step(self, x: Tensor, state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Every node's output at one step, and the state after it."""
        values, new = {"input": x}, dict[str, Any]()
        for name in self.order:
            if name == "input":
                continue
            unit: Any = self.units[self.where[name]]
            given = [state[f"{s} (last step)"] if (s, name) in self.late else values[s] for s in unit.spec.sources]
            values[name], after = unit(sum(given[1:], given[0]), state.get(name))
            if unit.kind in units.STATEFUL:
                new[name] = after
        return values, new | {f"{source} (last step)": values[source] for source, _ in sorted(self.late)}


def merged_state(rows: Tensor, fresh: Any, now: Any) -> Any:
    """The state `now`, but `fresh` in the streams `rows` ``[B]``."""
    if isinstance(now, Tensor):
        return torch.where(rows.reshape(-1, *[1] * (now.ndim - 1)), fresh, now)
    if isinstance(now, dict):
        return {key: merged_state(rows, fresh[key], value) for key, value in now.items()}
    return tuple(merged_state(rows, f, n) for f, n in zip(fresh, now))


@hookimpl
def fastsnn_models() -> list[type[Model]]:
    """This plugin's models."""
    return [NirGraph]


__getattr__ = renamed(__name__, {"Node": "NirNode"})
