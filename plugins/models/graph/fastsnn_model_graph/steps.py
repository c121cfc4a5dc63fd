"""Running a network step by step: modules, calls and tensors over named values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.spike_layers import fed
from fastsnn_conversion.time_folding import cast_half, name_states, run_time_folded
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import densify


@attrs.frozen
class Ref:
    """The value of another step, by name, inside the arguments of a step."""

    name: str


@attrs.frozen(eq=False)
class Step:
    """One value. `kind` is input, module, call or tensor; `target` the module's or tensor's path, or the call's name.

    `method` says that a call is one of a tensor's methods; `function` is what is called otherwise.
    """

    name: str
    kind: str
    target: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = attrs.field(factory=dict)
    function: Callable[..., Any] | None = None
    method: bool = False

    def sources(self) -> list[str]:
        """Names of the steps it reads, in order."""
        return [ref.name for ref in refs((self.args, self.kwargs))]


def refs(tree: Any) -> Iterator[Ref]:
    """Every reference in nested tuples, lists, dicts and slices."""
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from refs(item)
    elif isinstance(tree, dict):
        yield from refs(list(tree.values()))
    elif isinstance(tree, slice):
        yield from refs((tree.start, tree.stop, tree.step))


def fill(tree: Any, look: Callable[[Ref], Any]) -> Any:
    """The same structure with `look` in place of every reference."""
    if isinstance(tree, Ref):
        return look(tree)
    if isinstance(tree, tuple | list):
        return type(tree)(fill(item, look) for item in tree)
    if isinstance(tree, dict):
        return {key: fill(item, look) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(fill(item, look) for item in (tree.start, tree.stop, tree.step)))
    return tree


def put_at(root: nn.Module, path: str, value: Any) -> None:
    """A module, parameter or buffer at a dotted path; containers are made on the way."""
    *above, last = path.split(".")
    for part in above:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    elif isinstance(value, Tensor):
        root.register_buffer(last, value)
    else:
        root.add_module(last, value)


def in_named_order(inputs: tuple[Any, ...], named: dict[str, Any], names: list[str]) -> tuple[Any, ...]:
    """Inputs in the order of `names`, those given by name behind those given by position."""
    rest = names[len(inputs) :]
    if named.keys() - set(rest) or len(inputs) + len(named) != len(names):
        given = [*(f"{len(inputs)} by position" for _ in inputs[:1]), *named]
        raise FastSNNError(f"the network's inputs are {', '.join(names)}; got {', '.join(given) or 'none'}")
    return (*inputs, *(named[name] for name in rest))


class Network(nn.Module):
    """Steps over ``[B, …]`` inputs or, with time, ``[B, T, …]``; modules and tensors live under ``net.<path>``."""

    def __init__(self, steps: list[Step], held: dict[str, Any], output: Any, ranks: tuple[int, ...]) -> None:
        super().__init__()
        self.steps, self.output, self.ranks = steps, output, ranks
        self.net = nn.Module()
        for path, value in held.items():
            put_at(self.net, path, value)
        self.rewire(steps, output)

    def rewire(self, steps: list[Step], output: Any) -> None:
        """Take new steps over the modules that are there."""
        self.steps, self.output = steps, output
        last = {source: step.name for step in steps for source in step.sources()}
        kept = {ref.name for ref in refs(output)}
        self.done: dict[str, list[str]] = {}
        for source, step in last.items():
            if source not in kept:
                self.done.setdefault(step, []).append(source)
        name_states(self)

    def held(self, path: str) -> Any:
        """The module, parameter or buffer at a path."""
        found: Any = self.net
        for part in path.split("."):
            found = getattr(found, part)
        return found

    def body(self, *inputs: Any) -> Any:
        """Every step in order, over ``[N, …]``."""
        values: dict[str, Any] = {}
        given = iter(inputs)
        for step in self.steps:
            values[step.name] = next(given) if step.kind == "input" else self.take(step, values)
            for name in self.done.get(step.name, ()):
                del values[name]
        return fill(self.output, lambda ref: values[ref.name])

    def take(self, step: Step, values: dict[str, Any]) -> Any:
        """The value of one step."""
        if step.kind == "tensor":
            return self.held(step.target)
        args, kwargs = fill((step.args, step.kwargs), lambda ref: values[ref.name])
        if step.kind == "module":
            module = self.held(step.target)
            return module(*fed(module, args), **fed(module, kwargs))
        args, kwargs = densify(args), densify(kwargs)
        if step.method:
            return getattr(args[0], step.target)(*args[1:], **kwargs)
        assert step.function is not None
        return step.function(*args, **kwargs)

    def forward(
        self, *inputs: Tensor, state: Any = None, reset: Tensor | None = None, return_state: bool = False, **named: Any
    ) -> Any:
        """The output; with `return_state`, ``(output, state)``. `reset` ``[B, T]`` marks first samples of sequences.

        Inputs are given by position or by name.
        """
        inputs = in_named_order(inputs, named, [step.name for step in self.steps if step.kind == "input"])
        out, state = run_time_folded(self.body, cast_half(self, inputs), self.ranks, state, reset)
        return (out, state) if return_state else out


def run_all(network: Network, inputs: tuple[Tensor, ...], see: Callable[[Step, Any], None]) -> Any:
    """One pass over ``[N, …]`` inputs that shows every value to `see` as it comes."""
    values: dict[str, Any] = {}
    given = iter(inputs)
    with torch.no_grad():
        for step in network.steps:
            values[step.name] = next(given) if step.kind == "input" else network.take(step, values)
            see(step, values[step.name])
            for name in network.done.get(step.name, ()):
                del values[name]
        return fill(network.output, lambda ref: values[ref.name])
