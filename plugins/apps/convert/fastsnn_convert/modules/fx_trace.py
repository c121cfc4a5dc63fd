"""Looking inside ``forward``: a module as steps (modules, calls, tensors) through torch.fx.

Modules that a rule speaks for, and modules of torch.nn, are steps; a module that tracing cannot see through (its
control flow depends on data) becomes one step and is listed with the line that stopped the tracer. A subclass of a
torch.nn module is looked into, and where its forward calls its base class's, that is a step of the base class. Rules
may replace modules by simpler ones beforehand (``lower``).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import keyword
import linecache
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from torch import fx, nn

from fastsnn_conversion import spike_layers
from fastsnn_conversion.context import ConversionError
from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_convert.modules.inputs import Call
from fastsnn_convert.modules.prepare import BASE, INNER, overridden, torch_base
from fastsnn_core import Rule
from fastsnn_model_graph import Network, Ref, Step
from fastsnn_model_graph.steps import fill
from fastsnn_model_sequential import SequentialModule
from fastsnn_model_sequential.modules import LeakyReadout, TimeBegins, TimeDifference, TimeMean

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
    """The matching rule of highest priority; the first by name among equals. None for a module whose class overrides
    what its torch.nn class does, unless the rule names that very class: such a module is looked into."""
    if "forward" in module.__dict__:
        return None
    kind, base = type(module), torch_base(type(module))
    own = f"{kind.__module__}.{kind.__qualname__}"
    odd = base not in (None, kind) and "converts_as" not in vars(kind) and bool(overridden(kind, base))
    found = [rule for rule in rules if rule.matches(module) and not (odd and own not in rule.covers)]
    return max(found, key=lambda rule: rule.priority) if found else None


def without_time_loop(model: nn.Module) -> nn.Module:
    """A network of ours (`sequential`, `graph`) without its handling of time, which the converted one has again."""
    if not isinstance(model, SequentialModule | Network):
        return model
    kind = type(model)
    new = copy.copy(model)
    new.__class__ = type(f"Open{kind.__name__}", (kind,), {"forward": kind.body, "__module__": __name__})
    return new


def ours(module: nn.Module) -> bool:
    """A layer of FastSNN's own: a step as it is."""
    return (
        isinstance(module, TimeFoldedSite | LeakyReadout | TimeBegins | TimeDifference | TimeMean)
        or type(module).__module__ == spike_layers.__name__
    )


def lowered(model: nn.Module, rules: Sequence[Rule]) -> nn.Module:
    """The model with every module that a rule lowers replaced, from the outside in; shared modules stay shared."""
    memo: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if (known := memo.get(id(module))) is not None:
            return known
        new = without_time_loop(module)
        for rule in rules:
            lower = getattr(rule, "lower", None)
            while lower is not None and "forward" not in new.__dict__ and (simpler := lower(new)) is not None:
                new = simpler.train(new.training)
        memo[id(module)] = memo[id(new)] = new
        keep.append(module)  # ids stay taken
        for name, child in list(new.named_children()):
            if (other := visit(child)) is not child:
                setattr(new, name, other)
        return new

    keep: list[nn.Module] = []
    return visit(model)


class Tracer(fx.Tracer):
    """Takes a module that it cannot look into for one step, instead of giving up."""

    def __init__(self, rules: Sequence[Rule], call: Call) -> None:
        super().__init__()
        self.rules, self.call = rules, call
        self.opaque: dict[str, str] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """One placeholder per input of the example, whatever the forward's signature: others keep their defaults."""
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self.call.names]

        def run(shell: nn.Module, *inputs: Any) -> Any:
            return self.call(shell.get_submodule(ROOT), inputs)

        return run, [self.root, *proxies]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules of torch.nn, and modules that a rule speaks for."""
        if "forward" in m.__dict__:
            return False
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

    def base_call(self, module: nn.Module, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``super().forward(x)`` of a subclass, as a step of its base class over the same weights."""
        if BASE not in module._modules:
            twin: Any = base.__new__(base)  # type: ignore[call-overload]
            twin.__dict__.update({k: copy.copy(v) if isinstance(v, dict) else v for k, v in module.__dict__.items()})
            for name in [n for n in twin.__dict__ if n.endswith("_hooks")]:
                twin.__dict__[name] = type(twin.__dict__[name])()
            twin.__dict__.pop("forward", None)
            module.add_module(BASE, twin)
        return self.create_proxy("call_module", f"{self.path_of_module(module)}.{BASE}", args, kwargs)


@contextlib.contextmanager
def base_calls(tracer: Tracer, model: nn.Module) -> Iterator[None]:
    """Inside the block a subclass that calls its torch.nn class's forward makes a step of that class."""
    bases: set[Any] = set()
    for module in model.modules():
        base = torch_base(type(module))
        if base not in (None, type(module)) and not overridden(type(module), base) - {"forward"}:
            bases.add(base)
    before = {base: vars(base).get("forward") for base in bases}

    def patched(base: Any, original: Any) -> Any:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            plain = type(self) is base or not any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values()))
            return original(self, *args, **kwargs) if plain else tracer.base_call(self, base, args, kwargs)

        return forward

    try:
        for base in bases:
            base.forward = patched(base, base.forward)
        yield
    finally:
        for base, old in before.items():
            if old is None:
                del base.forward
            else:
                base.forward = old


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
    elif "item assignment" in reason:
        reason = "it assigns to parts of a tensor in place"
    return f"{where} ({reason})"


class Shell(nn.Module):
    """What is traced: a module that holds the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.add_module(ROOT, model)

    def forward(self, *inputs: Any) -> Any:
        """The model's output."""
        return self.get_submodule(ROOT)(*inputs)


def trace(model: nn.Module, call: Call, rules: Sequence[Rule]) -> Traced:
    """`model` as raw steps (in-place operations are still in place); its own modules are used, not copied."""
    shell, tracer = Shell(model), Tracer(rules, call)
    with base_calls(tracer, model):
        graph = tracer.trace(shell)
    if ROOT in tracer.opaque:
        raise ConversionError(
            f"torch.fx cannot see through {tracer.opaque[ROOT]}. Move what depends on data into an nn.Module of its "
            "own (it is then kept intact and listed), or convert with functional=False: then only modules are "
            "replaced, not function calls, and the network cannot be saved as a bundle"
        )
    return tidy_names(steps_of_graph(graph, shell, tracer.opaque))


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
