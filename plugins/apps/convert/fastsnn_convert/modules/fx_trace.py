"""Looking inside ``forward``: a module as steps (modules, calls, tensors) through torch.fx.

Modules that a rule speaks for, and modules of torch.nn, are steps; a module that tracing cannot see through (its
control flow depends on data) becomes one step and is listed with the line that stopped the tracer. Rules may replace
modules by simpler ones beforehand (``lower``) and name the module that a function call stands for (``lift``).
"""

from __future__ import annotations

import copy
import keyword
import linecache
import traceback
from collections.abc import Sequence
from typing import Any

import attrs
from torch import fx, nn

from fastsnn_conversion import spike_layers
from fastsnn_conversion.context import ConversionError
from fastsnn_conversion.time_folding import FoldedSite
from fastsnn_core import Rule
from fastsnn_model_graph import Network, Ref, Step
from fastsnn_model_graph.steps import fill
from fastsnn_model_graph.text import FUNCTIONS, name_of
from fastsnn_model_sequential import SequentialModule
from fastsnn_model_sequential.modules import TimeMean

ROOT = "model"


@attrs.define(eq=False)
class Traced:
    """A module as steps. `held`: modules and tensors by path; `opaque`: why a module could not be looked into, by path;
    `notes`: what a rule said of a call that stays a call, and the rule's name, by step."""

    steps: list[Step]
    held: dict[str, Any]
    output: Any
    opaque: dict[str, str]
    notes: dict[str, tuple[str, str]]


def best_rule(rules: Sequence[Rule], module: nn.Module) -> Rule | None:
    """The matching rule of highest priority; the first by name among equals."""
    found = [rule for rule in rules if rule.matches(module)]
    return max(found, key=lambda rule: rule.priority) if found else None


def opened(model: nn.Module) -> nn.Module:
    """A network of ours (`sequential`, `graph`) without its handling of time, which the converted one has again."""
    if not isinstance(model, SequentialModule | Network):
        return model
    kind = type(model)
    new = copy.copy(model)
    new.__class__ = type(f"Open{kind.__name__}", (kind,), {"forward": kind.body, "__module__": __name__})
    return new


def ours(module: nn.Module) -> bool:
    """A layer of FastSNN's own: a step as it is."""
    return isinstance(module, FoldedSite | TimeMean) or type(module).__module__ == spike_layers.__name__


def lowered(model: nn.Module, rules: Sequence[Rule]) -> nn.Module:
    """The model with every module that a rule lowers replaced, from the outside in."""
    model = opened(model)
    for rule in rules:
        lower = getattr(rule, "lower", None)
        while lower is not None and (simpler := lower(model)) is not None:
            model = simpler.train(model.training)
    for name, child in list(model.named_children()):
        new = lowered(child, rules)
        if new is not child:
            setattr(model, name, new)
    return model


class Tracer(fx.Tracer):
    """Takes a module that it cannot look into for one step, instead of giving up."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__()
        self.rules, self.opaque = rules, {}  # type: tuple[Sequence[Rule], dict[str, str]]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules of torch.nn, and modules that a rule speaks for."""
        if ours(m) or best_rule(self.rules, m) is not None:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look inside, or keep it whole."""
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        if path in self.opaque:
            return self.create_proxy("call_module", path, args, kwargs)
        before, stack = list(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            self.module_stack = stack
            for node in reversed([n for n in self.graph.nodes if n not in set(before)]):
                self.graph.erase_node(node)
            self.opaque[path] = stopped_at(error, m)
            return self.create_proxy("call_module", path, args, kwargs)


def stopped_at(error: BaseException, module: nn.Module) -> str:
    """Where tracing stopped: file, line and text of the last line outside of torch, and the reason."""
    here = __file__
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename and f.filename != here
    ]
    where = type(module).__name__ + ".forward"
    if frames:
        last = frames[-1]
        text = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
        where = f"{last.filename}:{last.lineno}: `{text}`" if text else f"{last.filename}:{last.lineno}"
    reason = " ".join(str(error).split())
    if "control flow" in reason:
        reason = "what it does depends on data"
    elif "iterat" in reason or "len" in reason:
        reason = "it goes over a tensor whose size is not known"
    return f"{where} ({reason})"


class Shell(nn.Module):
    """Calls the model with as many inputs as the example has, so that its other parameters keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.add_module(ROOT, model)


class Shell1(Shell):
    """One input."""

    def forward(self, x: Any) -> Any:
        """The model's output."""
        return self.get_submodule(ROOT)(x)


class Shell2(Shell):
    """Two inputs."""

    def forward(self, x: Any, y: Any) -> Any:
        """The model's output."""
        return self.get_submodule(ROOT)(x, y)


class Shell3(Shell):
    """Three inputs."""

    def forward(self, x: Any, y: Any, z: Any) -> Any:
        """The model's output."""
        return self.get_submodule(ROOT)(x, y, z)


SHELLS: dict[int, type[Shell]] = {1: Shell1, 2: Shell2, 3: Shell3}


def trace(model: nn.Module, inputs: int, rules: Sequence[Rule]) -> Traced:
    """`model` as steps; the model's own modules are used, not copied. A model that is opaque itself is refused."""
    if inputs not in SHELLS:
        raise ConversionError(f"a model of {inputs} inputs cannot be traced; up to {max(SHELLS)} are supported")
    shell, tracer = SHELLS[inputs](model), Tracer(rules)
    graph = tracer.trace(shell)
    if ROOT in tracer.opaque:
        raise ConversionError(
            f"torch.fx cannot see through {tracer.opaque[ROOT]}. Move what depends on data into an nn.Module of its "
            "own (it is then kept intact and listed), or convert with functional=False: then only modules are "
            "replaced, not function calls, and the network cannot be saved as a bundle"
        )
    traced = fx.GraphModule(shell, graph)
    traced.graph.eliminate_dead_code()
    return tidy(steps_of(traced.graph, traced, rules, tracer.opaque))


def bare(path: str) -> str:
    """A path without the shell's prefix."""
    return path.removeprefix(ROOT + ".")


def steps_of(graph: fx.Graph, shell: nn.Module, rules: Sequence[Rule], opaque: dict[str, str]) -> Traced:
    """An fx graph as steps; function calls become modules where a rule says which."""
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
                path = f"{path}_{calls[path]}"  # one ReLU called in several places: each place spikes for itself
                module = copy.deepcopy(module)
            found.held[path] = module
            found.steps.append(Step(node.name, "module", path, args, kwargs))
        else:
            found.steps.append(call_step(node, args, kwargs, rules, found))
    return found


def call_step(node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rules: Sequence[Rule], found: Traced) -> Step:
    """A function or method call, or the module it stands for."""
    for rule in sorted(rules, key=lambda r: -r.priority):
        lift = getattr(rule, "lift", None)
        meant = lift(node.target, args, kwargs) if lift is not None else None
        if isinstance(meant, nn.Module) and args and isinstance(args[0], Ref):
            found.held[node.name] = meant
            return Step(node.name, "module", node.name, (args[0],))
        if isinstance(meant, str):
            found.notes[node.name] = (meant, rule.name)
            break
    if node.op == "call_method":
        return Step(node.name, "call", node.target, args, kwargs, method=True)
    known = name_of(node.target)
    if known is not None:  # in-place operators become ordinary ones
        return Step(node.name, "call", known, args, kwargs, FUNCTIONS[known])
    return Step(node.name, "call", getattr(node.target, "__name__", "?"), args, kwargs, node.target)


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


def tidy(traced: Traced) -> Traced:
    """Names without the shell's prefix."""
    names: dict[str, str] = {}
    taken = {step.name for step in traced.steps}
    for step in traced.steps:
        short = step.name.removeprefix(f"{ROOT}_")
        short = short if short.isidentifier() else f"n{short}"
        if short != step.name and short not in taken and not keyword.iskeyword(short):
            names[step.name] = short
            taken.add(short)
    traced.steps = [attrs.evolve(renamed(s, names), name=names.get(s.name, s.name)) for s in traced.steps]
    traced.output = fill(traced.output, lambda ref: Ref(names.get(ref.name, ref.name)))
    traced.notes = {names.get(name, name): note for name, note in traced.notes.items()}
    return traced


def renamed(step: Step, names: dict[str, str]) -> Step:
    """The step with references to some steps turned to others."""

    def look(ref: Ref) -> Ref:
        return Ref(names.get(ref.name, ref.name))

    return attrs.evolve(step, args=fill(step.args, look), kwargs=fill(step.kwargs, look))
