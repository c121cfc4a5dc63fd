"""Branches, loops and assertions on shapes while a forward is traced: taken as they are for every input it can get.

``if x.dim() == 2``, ``assert x.shape[-1] == 16``, ``for i in range(h.shape[-1])``, ``x.view(*x.shape[:-1], 4, 4)``:
what they ask is no data, but torch.fx does not know it. Here the steps so far are run on the example and on its
variations, every one of one sample fewer or more, or longer in one other dimension, that the model itself runs on. A
number that is the same on all of them is a constant of the network. One that differs (the batch, the length of a
sequence) is none, and neither is what was computed from it: the tracer stops there, as it does at data.
"""

from __future__ import annotations

import dis
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

ATTRIBUTES = ("shape", "ndim", "dtype", "device", "is_cuda", "layout")
METHODS = ("size", "dim", "ndimension", "numel", "is_floating_point", "is_complex")
FUNCTIONS = (torch.is_tensor, torch.is_floating_point, torch.is_complex, torch.numel, len)


class NotKnown(Exception):
    """It depends on data, or on a size that varies."""


def variations(run: Callable[[Sequence[Tensor]], Any], given: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The example, one sample of it, one more, and each other dimension by one longer: those that `run` takes."""
    made = [tuple(given), tuple(x[:1] for x in given), tuple(torch.cat([x, x[:1]]) for x in given)]
    for i, x in enumerate(given):
        for dim in range(1, x.ndim):
            if x.shape[dim]:
                made.append((*given[:i], torch.cat([x, x.narrow(dim, 0, 1)], dim), *given[i + 1 :]))
    found = made[:1]
    for inputs in made[1:]:
        try:
            run(inputs)
        except Exception:
            continue  # a size that the model fixes
        found.append(inputs)
    return found


class KnownSizes:
    """Values of a graph's nodes on every variation, run as they are asked for."""

    def __init__(self, root: nn.Module, run: Callable[[Sequence[Tensor]], Any], given: Sequence[Tensor]) -> None:
        self.root, self.run, self.given = root, run, given
        self.inputs: list[tuple[Tensor, ...]] = []
        self.values: list[dict[fx.Node, Any]] = []
        self.running = False  # modules are run, not traced

    def of(self, node: fx.Node) -> Any:
        """The value of a node that no data and no varying size went into; else `NotKnown`."""
        values = self.all_of(node)
        if not shape_only(node) or any(not equal_constant(v, values[0]) for v in values) or self.varies(node):
            raise NotKnown
        return values[0]

    def length(self, node: fx.Node) -> int:
        """How many items a shape or a tuple has."""
        values = self.all_of(node)
        if not all(isinstance(v, tuple | list) for v in values) or len({len(v) for v in values}) > 1:
            raise NotKnown
        return len(values[0])

    def all_of(self, node: fx.Node) -> list[Any]:
        """The values of a node on every variation."""
        self.running = True
        try:
            if not self.inputs:
                self.inputs = variations(self.run, self.given)
                self.values = [{} for _ in self.inputs]
            for inputs, known in zip(self.inputs, self.values):
                run_new_nodes(node.graph, self.root, inputs, known)
        except Exception as error:
            raise NotKnown from error
        finally:
            self.running = False
        return [known[node] for known in self.values]

    def varies(self, node: fx.Node) -> bool:
        """Was a number on the way to it not the same on all variations? (Whole shapes may differ: parts are taken.)"""
        for other in node.all_input_nodes:
            values = [known[other] for known in self.values]
            if isinstance(values[0], Tensor):
                continue
            if not isinstance(values[0], tuple | list) and any(not equal_constant(v, values[0]) for v in values):
                return True
            if self.varies(other):
                return True
        return False


@torch.no_grad()
def run_new_nodes(graph: fx.Graph, root: nn.Module, inputs: Sequence[Tensor], known: dict[fx.Node, Any]) -> None:
    """Run the nodes that were added since."""
    given = iter(inputs)
    for node in graph.nodes:
        first = next(given, None) if node.op == "placeholder" else None
        if node in known:
            continue
        args, kwargs = (fx.node.map_arg(a, lambda n: known[n]) for a in (node.args, node.kwargs))
        if node.op == "placeholder":
            known[node] = None if first is None else first.clone()
        elif node.op == "get_attr":
            known[node] = operator.attrgetter(str(node.target))(root)
        elif node.op == "call_module":
            known[node] = root.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_function":
            known[node] = node.target(*args, **kwargs)
        elif node.op == "call_method":
            known[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)


def shape_only(node: fx.Node) -> bool:
    """Does a node hold what was read of tensors' shapes and types, and nothing of their values?"""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ATTRIBUTES or all(map(shape_only, node.all_input_nodes))
    if (node.op == "call_method" and node.target in METHODS) or (
        node.op == "call_function" and node.target in FUNCTIONS
    ):
        return True
    inputs = node.all_input_nodes
    return node.op in ("call_function", "call_method") and bool(inputs) and all(map(shape_only, inputs))


def drop_questions(graph: fx.Graph) -> None:
    """Take the nodes out that only such questions read."""
    for node in reversed(graph.nodes):
        if not node.users and (shape_only(node) or node.target is torch._assert):
            graph.erase_node(node)


def equal_constant(a: Any, b: Any) -> bool:
    """Equal, and of one type."""
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)


def in_assertion() -> bool:
    """Is the code that asks for a truth value an ``assert``? The model ran on its example, so it held."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name in ("in_assertion", "to_bool", "__bool__"):
        frame = frame.f_back
    if frame is None:
        return False
    steps = list(dis.get_instructions(frame.f_code))
    here = next((i for i, step in enumerate(steps) if step.offset == frame.f_lasti), len(steps))
    at = {step.offset: step for step in steps}
    following = steps[here + 1 : here + 2] + [at[s.argval] for s in steps[here : here + 1] if s.argval in at]
    return any(s.opname == "LOAD_ASSERTION_ERROR" or s.argval == "AssertionError" for s in following)


class Countable:
    """What a value is asked for while tracing that a constant can answer."""

    tracer: Any
    node: fx.Node

    def __getattr__(self, name: str) -> Any:
        return KnownAttribute(self, name)  # type: ignore[arg-type]

    def number(self) -> Any:
        """The constant that it is; the tracer's own error where it is none."""
        try:
            return self.tracer.known.of(self.node)
        except NotKnown:
            raise fx.proxy.TraceError(
                "symbolically traced variables cannot be used as inputs to control flow"
            ) from None

    def __index__(self) -> int:
        return operator.index(self.number())

    def __int__(self) -> int:
        return int(self.number())

    def __len__(self) -> int:
        try:
            return int(self.tracer.known.length(self.node))
        except NotKnown:
            return int(fx.Proxy.__len__(self))  # type: ignore[arg-type]


class KnownProxy(Countable, fx.Proxy):
    """A value while tracing."""


class KnownAttribute(Countable, fx.proxy.Attribute):
    """An attribute or a method of one."""


def items_of(known: KnownSizes, proxy: Any) -> Iterator[Any] | None:
    """The items of a shape or a tuple, one by one; None where their number is not known."""
    try:
        return iter([proxy[i] for i in range(known.length(proxy.node))])
    except NotKnown:
        return None
