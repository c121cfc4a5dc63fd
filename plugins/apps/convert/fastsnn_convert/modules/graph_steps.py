"""A torch.fx graph as steps of a network, one for one, with names that do not show what tracing put around it."""

from __future__ import annotations

import copy
import inspect
import keyword
import re
from collections.abc import Mapping
from typing import Any

import attrs
from torch import fx, nn

from fastsnn_convert.modules.hooked_modules import INNER
from fastsnn_model_graph import Ref, Step
from fastsnn_model_graph.steps import fill

ROOT, BASE = "model", "_base_"  # path segments that a network's names do not show


@attrs.define(eq=False)
class Traced:
    """A module as steps. `held`: modules and tensors by path; `opaque`: why a module could not be looked into, by path;
    `notes`: what a rule said of a call that stays a call, and the rule's name, by step."""

    steps: list[Step]
    held: dict[str, Any]
    output: Any
    opaque: dict[str, str]
    notes: dict[str, tuple[str, str]]


def bare(path: str) -> str:
    """A path without the segments that stand for the shell, for hooks and for base classes."""
    parts = [part for part in path.removeprefix(ROOT + ".").split(".") if part not in (INNER, BASE)]
    return ".".join(part if is_name(part) or part.isdigit() else re.sub(r"\W", "_", f"n{part}") for part in parts)


def is_name(text: str) -> bool:
    """Whether Python takes a text as a name: ``lambda`` and ``2a`` are none."""
    return text.isidentifier() and not keyword.iskeyword(text)


def again(path: str, number: int) -> str:
    """The path of a module without weights where it is called for the second, third, … time."""
    above, dot, last = path.rpartition(".")
    return f"{above}{dot}{'n' if last.isdigit() else ''}{last}_{number}"


def steps_of_graph(graph: fx.Graph, shell: nn.Module, opaque: dict[str, str]) -> Traced:
    """An fx graph as steps, one for one."""
    found = Traced([], {}, None, {bare(p): why for p, why in opaque.items()}, {})
    calls: dict[str, int] = {}
    for node in graph.nodes:
        args, kwargs = plain_tree(node.args), plain_tree(dict(node.kwargs))
        if node.op == "placeholder":
            found.steps.append(Step(node.name, "input"))
        elif node.op == "output":
            found.output = args[0]
        elif node.op == "get_attr":
            value: Any = shell
            for part in node.target.split("."):
                value = getattr(value, part)
            found.held[bare(node.target)] = value
            found.steps.append(Step(node.name, "tensor", bare(node.target)))
        elif node.op == "call_module":
            module, path = shell.get_submodule(node.target), bare(node.target)
            calls[path] = calls.get(path, 0) + 1
            if calls[path] > 1 and not any(True for _ in (*module.parameters(), *module.buffers())):
                path = again(path, calls[path])  # one ReLU called in several places: each place spikes for itself
                module = copy.deepcopy(module)
            found.held[path] = module
            if node.target not in opaque:  # which may be called in ways that its signature does not say
                args, kwargs = positional(module, args, kwargs)
            found.steps.append(Step(node.name, "module", path, args, kwargs))
        elif node.op == "call_method":
            found.steps.append(Step(node.name, "call", node.target, args, kwargs, method=True))
        else:
            if not args and "input" in kwargs and "condition" not in kwargs:
                args = (kwargs.pop("input"),)
            found.steps.append(
                Step(node.name, "call", getattr(node.target, "__name__", "?"), args, kwargs, node.target)
            )
    return found


def positional(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Keyword arguments of a module's call by position, as far as they follow the positional ones."""
    try:
        names = [p.name for p in inspect.signature(module.forward).parameters.values()][len(args) :]
    except (TypeError, ValueError):
        return args, kwargs
    kwargs = dict(kwargs)
    for name in names:
        if name not in kwargs:
            break
        args = (*args, kwargs.pop(name))
    return args, kwargs


def plain_tree(tree: Any) -> Any:
    """fx's immutable lists and dicts as plain ones, its nodes as references."""
    if isinstance(tree, fx.Node):
        return Ref(tree.name)
    if isinstance(tree, tuple):
        return tuple(plain_tree(t) for t in tree)
    if isinstance(tree, list):
        return [plain_tree(t) for t in tree]
    if isinstance(tree, dict):
        return {key: plain_tree(t) for key, t in tree.items()}
    if isinstance(tree, slice):
        return slice(*(plain_tree(t) for t in (tree.start, tree.stop, tree.step)))
    return tree


def tidy_names(traced: Traced) -> Traced:
    """Names without the shell's prefix."""
    names: dict[str, str] = {}
    taken = {step.name for step in traced.steps}
    for step in traced.steps:
        short = "_".join(p for p in step.name.removeprefix(f"{ROOT}_").split("__") if p not in ("hooked", "base"))
        short = short.removesuffix("__hooked_").removesuffix("__base_")
        short = short if is_name(short) else f"n{short}"
        if short != step.name and short not in taken:
            names[step.name] = short
            taken.add(short)
    traced.steps = [attrs.evolve(remapped(s, names), name=names.get(s.name, s.name)) for s in traced.steps]
    traced.output = fill(traced.output, lambda ref: Ref(names.get(ref.name, ref.name)))
    return traced


def remapped(step: Step, names: Mapping[str, str]) -> Step:
    """The step with references to some steps turned to others."""

    def look(ref: Ref) -> Ref:
        return Ref(names.get(ref.name, ref.name))

    return attrs.evolve(step, args=fill(step.args, look), kwargs=fill(step.kwargs, look))
