"""Looking inside ``forward``: a module as steps (modules, calls, tensors) through torch.fx.

Modules that a rule speaks for, and modules of torch.nn, are steps; a module that tracing cannot see through (its
control flow depends on data) becomes one step and is listed with the line that stopped the tracer. A subclass of a
torch.nn module is looked into, and where its forward calls its base class's, that is a step of the base class. Rules
may replace modules by simpler ones beforehand (``lower``).
"""

from __future__ import annotations

import contextlib
import copy
import linecache
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fastsnn_conversion import spike_layers
from fastsnn_conversion.context import ConversionError
from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_convert.modules import known_sizes
from fastsnn_convert.modules.graph_steps import BASE, ROOT, Traced, steps_of_graph, tidy_names
from fastsnn_convert.modules.inputs import Call
from fastsnn_convert.modules.known_sizes import KnownProxy, KnownSizes, drop_questions, in_assertion, items_of
from fastsnn_convert.modules.prepare import overridden, torch_base
from fastsnn_convert.modules.traced_check import reference_output
from fastsnn_core import Rule
from fastsnn_model_graph import Network
from fastsnn_model_sequential import SequentialModule
from fastsnn_model_sequential.modules import LeakyReadout, TimeBegins, TimeDifference, TimeMean


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

    def __init__(self, rules: Sequence[Rule], call: Call, known: KnownSizes) -> None:
        super().__init__()
        self.rules, self.call, self.known = rules, call, known
        self.opaque: dict[str, str] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """One placeholder per input of the example, whatever the forward's signature: others keep their defaults."""
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self.call.names]

        def run(shell: nn.Module, *inputs: Any) -> Any:
            return self.call(shell.get_submodule(ROOT), inputs)

        return run, [self.root, *proxies]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that answers questions about shapes."""
        return KnownProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """An assertion held on the example; a condition on shapes is a constant; anything else stops the tracer."""
        return True if in_assertion() else bool(obj.number())

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a shape or a tuple."""
        found = items_of(self.known, obj)
        return super().iter(obj) if found is None else found

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules of torch.nn, and modules that a rule speaks for."""
        if "forward" in m.__dict__:
            return False
        if ours(m) or best_rule(self.rules, m) is not None:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look inside, or keep it whole."""
        if self.known.running:
            return forward(*args, **kwargs)
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

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter is a step, but where modules are run."""
        return attr_val if self.known.running else super().getattr(attr, attr_val, parameter_proxy_cache)

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


@contextlib.contextmanager
def modules_as_before() -> Iterator[None]:
    """Behind the block modules are called as before it, even where ctrl-C cut off torch.fx while it put them back."""
    before = {name: vars(nn.Module)[name] for name in ("__call__", "__getattr__")}
    tracing: Any = fx._symbolic_trace
    patcher = getattr(tracing, "CURRENT_PATCHER", None)
    try:
        yield
    finally:
        for name, function in before.items():
            if vars(nn.Module)[name] is not function:
                setattr(nn.Module, name, function)
        if hasattr(tracing, "CURRENT_PATCHER"):  # torch.compile would put its patches there again
            tracing.CURRENT_PATCHER = patcher


def stopped_at(error: BaseException, module: nn.Module) -> str:
    """Where tracing stopped: file, line and text of the last line outside of torch, and the reason."""
    here = (__file__, known_sizes.__file__)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename and f.filename not in here
    ]
    where = type(module).__name__ + ".forward"
    if frames:
        last = frames[-1]
        text = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
        where = f"{last.filename}:{last.lineno}: `{text}`" if text else f"{last.filename}:{last.lineno}"
    reason = " ".join(str(error).split())
    if "control flow" in reason:
        reason = "what it does depends on data, or on a size that may vary"
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


def trace(model: nn.Module, call: Call, rules: Sequence[Rule], given: Sequence[Tensor]) -> Traced:
    """`model` as raw steps (in-place operations are still in place); its own modules are used, not copied.

    What its forward asks of shapes is answered by variations of the inputs `given` (`known_sizes`).
    """
    shell = Shell(model)
    tracer = Tracer(rules, call, KnownSizes(shell, lambda x: reference_output(model, call, x), given))
    with modules_as_before(), base_calls(tracer, model):
        graph = tracer.trace(shell)
    drop_questions(graph)
    if ROOT in tracer.opaque:
        raise ConversionError(
            f"torch.fx cannot see through {tracer.opaque[ROOT]}. Move what depends on data into an nn.Module of its "
            "own (it is then kept intact and listed), or convert with functional=False: then only modules are "
            "replaced, not function calls, and the network cannot be saved as a bundle"
        )
    return tidy_names(steps_of_graph(graph, shell, tracer.opaque))
