"""A traced network without in-place operations, with function calls as the modules that they stand for.

    x.sub_(m)        y = x.sub(m), and whoever reads x (or the same tensor under another name) later reads y
    F.avg_pool2d(x, x.size(3))        a module, where the size does not depend on the batch

Which operation changes which value is seen by running the steps on an example (`Tensor._version`), so that modules
with ``inplace=True``, hooks and functions are alike. A change that only a view of another, later read value would show
is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.modules.graph_steps import Traced, remapped
from fastsnn_core import Rule
from fastsnn_model_graph import Network, Ref, Step
from fastsnn_model_graph.steps import fill, refs
from fastsnn_model_graph.text import FUNCTIONS, function_name
from fastsnn_modules.hooks import tensors_in

SPECIAL = {"zero_": ("zeros_like", torch.zeros_like), "fill_": ("full_like", torch.full_like)}


@torch.no_grad()
def out_of_place(traced: Traced, example: Sequence[Tensor]) -> None:
    """Rewrite the steps; see the module's text. Values are computed on copies of `example`."""
    network = Network(traced.steps, traced.held, traced.output, tuple(x.ndim for x in example))
    own = {id(t) for value in traced.held.values() for t in tensors_of(value)}
    last = {name: i for i, step in enumerate(traced.steps) for name in step.sources()}
    last |= {ref.name: len(traced.steps) for ref in refs(traced.output)}
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    steps: list[Step] = []
    given = iter(x.clone() for x in example)
    for i, step in enumerate(traced.steps):
        if step.kind == "input":
            values[step.name] = next(given)
            steps.append(step)
            continue
        before = [(name, t, t._version) for name in step.sources() for t in tensors_in(values[name])]
        try:
            values[step.name] = value = network.take(step, values)
        except Exception as error:
            raise does_not_run(f"at {step.target!r}", error, traced.opaque) from error
        changed = [(name, t) for name, t, version in before if t._version != version]
        current = remapped(step, names)
        if changed:
            name, t = changed[0]
            if id(t) in own or any(shares(t, w) for w in network_tensors(traced, own)):
                raise ConversionError(
                    f"{said(step)} changes a weight or buffer of its own in place; it cannot be converted"
                )
            later = [
                n
                for n, v in values.items()
                if n != step.name and last.get(n, -1) > i and any(shares(t, u) for u in tensors_in(v))
            ]
            if not (isinstance(value, Tensor) and same_tensor(value, t)):
                if later:
                    raise ConversionError(
                        f"{said(step)} changes its input in place, which is read again later; write it out of place"
                    )
                copied = Step(
                    unused_name(f"{step.name}_copy", traced.steps),
                    "call",
                    "clone",
                    (Ref(names.get(name, name)),),
                    method=True,
                )
                steps.append(copied)
                current = remapped(step, names | {name: copied.name})
            for n in later:
                if not (isinstance(values[n], Tensor) and same_tensor(values[n], t)):
                    raise ConversionError(
                        f"{said(step)} works in place on a view of {n!r}, which is read again later; write it "
                        "out of place"
                    )
                names[n] = step.name
        steps.append(pure(current, traced, bool(changed)))
    traced.steps = steps
    traced.output = fill(traced.output, lambda ref: Ref(names.get(ref.name, ref.name)))


def does_not_run(where: str, error: Exception, opaque: Mapping[str, str]) -> ConversionError:
    """The error of steps that fail on the example."""
    for path, why in opaque.items():
        return ConversionError(
            f"torch.fx cannot see through {why} (module {path!r}), and what is made of its output then fails ({where}: "
            f"{error}). Make that part take and give tensors, or use functional=False; a model of transformers is "
            "converted from its directory: model.save_pretrained(…), then convert that directory"
        )
    return ConversionError(
        f"the traced network does not run ({where}): {type(error).__name__}: {error}. A part of its forward may ask "
        "for a type, a size or an option that tracing does not see; make that part an nn.Module of its own, or use "
        "functional=False"
    )


def network_tensors(traced: Traced, own: set[int]) -> Iterator[Tensor]:
    """Weights and buffers."""
    for value in traced.held.values():
        yield from tensors_of(value)


def tensors_of(value: Any) -> list[Tensor]:
    """Of a module, or a tensor itself."""
    return [value] if isinstance(value, Tensor) else [*value.parameters(), *value.buffers()]


def shares(a: Tensor, b: Tensor) -> bool:
    """Do two tensors lie in the same memory?"""
    return bool(a.numel() and b.numel()) and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """The same tensor, perhaps under two names."""
    return shares(a, b) and a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def said(step: Step) -> str:
    """A step in an error."""
    if step.kind == "module":
        return f"module {step.target!r}"
    return f"the in-place operation {step.target}() (value {step.name!r})"


def unused_name(name: str, steps: Sequence[Step]) -> str:
    """A name that no step has."""
    taken = {step.name for step in steps}
    while name in taken:
        name += "_"
    return name


def pure(step: Step, traced: Traced, changed: bool) -> Step:
    """The step out of place."""
    if step.kind == "module":
        module = traced.held[step.target]
        if getattr(module, "inplace", False) is True:
            module.inplace = False
        return step
    if step.kind != "call":
        return step
    kwargs = {k: v for k, v in step.kwargs.items() if k not in ("inplace", "out")}
    if step.method:
        name = step.target
        if name.endswith("_") and not name.endswith("__"):
            if name in SPECIAL:
                special: Any
                target, special = SPECIAL[name]
                return attrs.evolve(step, target=target, function=special, method=False, kwargs=kwargs)
            if not hasattr(Tensor, name[:-1]):
                raise ConversionError(f"the in-place operation {name}() has no form out of place; write it another way")
            name = name[:-1]
        return attrs.evolve(step, target=name, kwargs=kwargs)
    function, args = step.function, step.args
    if (known := function_name(function)) is not None:  # in-place operators become ordinary ones
        function = FUNCTIONS[known]
    elif (name := getattr(function, "__name__", "")).endswith("_") and not name.endswith("__"):
        function = getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)
        if function is None:
            raise ConversionError(f"the in-place operation {name}() has no form out of place; write it another way")
    known = function_name(function)
    if (at := inplace_at(function)) is not None and len(args) > at:
        args = (*args[:at], False, *args[at + 1 :])
    target = known if known is not None else getattr(function, "__name__", "?")
    return attrs.evolve(step, target=target, function=function, args=args, kwargs=kwargs)


def inplace_at(function: Any) -> int | None:
    """The position of an ``inplace`` argument."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


# -- calls as modules ------------------------------------------------------------------------------------------------


def lift_calls(traced: Traced, rules: Sequence[Rule], example: Sequence[Tensor]) -> None:
    """Calls that stand for a module become one; others are noted with what a rule says of them."""
    sizes = ShapeNumbers(traced, example)
    steps = []
    for step in traced.steps:
        steps.append(lift(step, rules, traced, sizes) if step.kind == "call" else step)
    traced.steps = steps
    drop_unread(traced)


class ShapeNumbers:
    """Whole numbers that a network computes from its inputs' shapes, where the batch does not matter."""

    def __init__(self, traced: Traced, example: Sequence[Tensor]) -> None:
        self.traced, self.example = traced, example
        self.found: dict[str, Any] | None = None

    def look(self, ref: Ref) -> Any:
        """The constant, or the reference itself."""
        if self.found is None:
            more = [torch.cat([x, x[:1]]) for x in self.example]
            try:
                first, second = (whole_numbers(self.traced, x) for x in (self.example, more))
            except Exception:  # its steps run on this batch only: said by the comparison with the model
                first, second = {}, {}
            self.found = {n: v for n, v in first.items() if n in second and v == second[n]}
        return self.found.get(ref.name, ref)


def whole_numbers(traced: Traced, example: Sequence[Tensor]) -> dict[str, Any]:
    """Values of steps that are integers, or tuples of them."""
    from fastsnn_model_graph.steps import run_all

    network = Network(traced.steps, traced.held, traced.output, tuple(x.ndim for x in example))
    found: dict[str, Any] = {}

    def see(step: Step, value: Any) -> None:
        whole = isinstance(value, tuple) and all(isinstance(n, int) for n in value)
        if whole or (isinstance(value, int) and not isinstance(value, bool)):
            found[step.name] = tuple(value) if whole else value

    run_all(network, tuple(x.clone() for x in example), see)
    return found


def lift(step: Step, rules: Sequence[Rule], traced: Traced, sizes: ShapeNumbers) -> Step:
    """A call as the module that it stands for, or as it is."""
    meant_by = step.target if step.method else step.function
    first, rest, kwargs = step.args[:1], step.args[1:], step.kwargs
    if any(True for _ in refs((rest, kwargs))):
        rest, kwargs = fill((rest, kwargs), sizes.look)
    constant = not any(True for _ in refs((rest, kwargs)))
    for rule in sorted(rules, key=lambda r: -r.priority):
        asked = getattr(rule, "lift", None)
        if asked is None:
            continue
        try:
            meant = asked(meant_by, (*first, *rest), kwargs)
        except (TypeError, ValueError):
            if constant:
                raise
            continue  # an argument is only known when the network runs
        if isinstance(meant, nn.Module) and constant and first and isinstance(first[0], Ref):
            traced.held[step.name] = meant.eval()
            return Step(step.name, "module", step.name, first)
        if isinstance(meant, str):
            traced.notes[step.name] = (meant, rule.name)
            return step
    return step


def drop_unread(traced: Traced) -> None:
    """Without steps that nobody reads: sizes that became constants, attention weights that are thrown away."""
    read = {ref.name for ref in refs(traced.output)}
    kept: list[Step] = []
    for step in reversed(traced.steps):
        if step.kind == "input" or step.name in read:
            kept.append(step)
            read |= set(step.sources())
    traced.steps = kept[::-1]
    used = {step.target for step in traced.steps if step.kind in ("module", "tensor")}
    traced.held = {path: value for path, value in traced.held.items() if path in used}
    traced.notes = {name: note for name, note in traced.notes.items() if name in {s.name for s in traced.steps}}
