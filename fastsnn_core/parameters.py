"""Parameters: the single source for validation, ``fastsnn show``, the documentation and the Hypothesis strategies."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Union

import attrs

from fastsnn_core.errors import FastSNNError

META = "fastsnn"


class ParamError(FastSNNError):
    """A value a parameter cannot take: says which parameter, what it got and what is possible."""

    def __init__(self, where: str, message: str, help: str = "") -> None:
        super().__init__(f"{where}: {message}" + (f" ({help})" if help else ""))
        self.where, self.message, self.help = where, message, help


@attrs.frozen
class Bounds:
    """What `param` knows beyond the type: bounds, choices, unit, prose, and small values for generated tests."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] = ()
    unit: str = ""
    doc: str = ""
    draw: tuple[Any, ...] = ()

    def describe(self) -> str:
        """``>= 1, < 64``, or the choices; the empty string where anything of the type goes."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        signs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return ", ".join(f"{sign} {value:g}" for sign, value in signs if value is not None)

    def problem(self, value: Any) -> str | None:
        """Why `value` is out of bounds, or None."""
        values = value if isinstance(value, tuple) else (value,)
        for v in values:
            if self.choices and v not in self.choices:
                return f"expected {self.describe()}, got {v!r}"
            if isinstance(v, bool) or not isinstance(v, int | float):
                continue
            bad = v != v or (self.ge is not None and v < self.ge) or (self.gt is not None and v <= self.gt)
            bad = bad or (self.le is not None and v > self.le) or (self.lt is not None and v >= self.lt)
            if bad and self.describe():
                return f"expected {self.describe()}{f' {self.unit}' if self.unit else ''}, got {v!r}"
            if isinstance(v, int) and abs(v) >= 2**63:
                return f"{v!r} does not fit into 64 bits"
        return None


def param(
    default: Any = attrs.NOTHING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[Any] = (),
    unit: str = "",
    doc: str = "",
    draw: Sequence[Any] = (),
) -> Any:
    """A parameter of a component.

    `ge`, `gt`, `le`, `lt` and `choices` bound it (each item, for a tuple); `unit` and `doc` explain it; `draw` lists
    small values for generated tests where the bounds alone would make them slow.
    """
    bounds = Bounds(ge, gt, le, lt, tuple(choices), unit, doc, tuple(draw))
    return attrs.field(default=default, metadata={META: bounds}, validator=validate, kw_only=True)


def validate(instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """The attrs validator behind `param` and `slot`: type first, then bounds."""
    where = f"{getattr(type(instance), 'name', '') or type(instance).__name__}.{field.name}"
    hint = hints(type(instance))[field.name]
    if isinstance(value, list) and matches(tuple(value), hint):
        object.__setattr__(instance, field.name, value := tuple(value))
    if not matches(value, hint):
        raise ParamError(where, f"expected {type_name(hint)}, got {value!r}")
    if problem := bounds_of(field).problem(value):
        raise ParamError(where, problem)


def checked(*validators: Any) -> Any:
    """attrs' own validators whose complaints are a `ParamError`: ``attrs.field(validator=checked(ge(0), le(1)))``."""

    def run(instance: Any, field: attrs.Attribute[Any], value: Any) -> None:
        try:
            for validator in validators:
                validator(instance, field, value)
        except (ValueError, TypeError) as error:
            says = str(error.args[0] if error.args else error)
            raise ParamError(f"{type(instance).__name__}.{field.name}", says) from None

    return run


hints: Callable[[Any], dict[str, Any]] = cache(typing.get_type_hints)  # resolved annotations of an attrs class
fields: Callable[[Any], tuple[attrs.Attribute[Any], ...]] = attrs.fields  # the parameters of a component class


def bounds_of(field: attrs.Attribute[Any]) -> Bounds:
    """The `param` metadata of a field; empty for a plain attrs field."""
    return field.metadata.get(META, Bounds())


def matches(value: Any, hint: Any) -> bool:
    """Is `value` of the annotated type? Strict: ``True`` is no int, ``"4"`` no number; an int is a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, a) for a in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(matches(v, args[0]) for v in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(matches(k, args[0]) and matches(v, args[1]) for k, v in value.items())
    if origin is typing.Literal:
        return value in args
    if hint is None or hint is types.NoneType:
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def type_name(hint: Any) -> str:
    """How an error or ``fastsnn show`` names a type: ``int``, ``neuron``, ``list of attention``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("nothing" if a is types.NoneType else type_name(a) for a in args)
    if origin is tuple:
        return f"list of {type_name(args[0])}"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if isinstance(kind := getattr(hint, "kind", None), str):
        return kind or "component"
    return str(getattr(hint, "__name__", hint))
