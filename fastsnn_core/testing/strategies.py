"""Hypothesis strategies over whatever plugins are installed.

`component_tables` draws a component as the table a user would write (recursing into slots), `components` the component.
"""

from __future__ import annotations

import types
import typing
from typing import Any, Union

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from fastsnn_core.component import Bounds, Component, bounds_of, fields, hints, kind_of
from fastsnn_core.errors import FastSNNError
from fastsnn_core.moved import former
from fastsnn_core.plugins import registry

DEPTH = 3


def parameter_values(hint: Any, bounds: Bounds, depth: int) -> SearchStrategy[Any]:
    """Values of a parameter as TOML would carry them, within its bounds; small ones where `draw` lists them."""
    if bounds.draw:
        return st.sampled_from([list(v) if isinstance(v, tuple) else v for v in bounds.draw])
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return parameter_values(next(a for a in args if a is not types.NoneType), bounds, depth)
    if origin is tuple:
        return st.lists(parameter_values(args[0], attrs.evolve(bounds, draw=()), depth), min_size=1, max_size=2)
    if kind_of(hint):
        return component_tables(hint.kind, depth=depth - 1)
    if bounds.choices:
        return st.sampled_from(bounds.choices)
    if hint is bool:
        return st.booleans()
    if hint is int:
        low = int(bounds.ge if bounds.ge is not None else bounds.gt + 1 if bounds.gt is not None else 0)
        high = int(bounds.le if bounds.le is not None else bounds.lt - 1 if bounds.lt is not None else low + 8)
        return st.integers(low, min(high, low + 8))
    if hint is float:
        low_f = bounds.ge if bounds.ge is not None else bounds.gt if bounds.gt is not None else 0.0
        high_f = min(
            bounds.le if bounds.le is not None else bounds.lt if bounds.lt is not None else low_f + 4.0, low_f + 4.0
        )
        first, last = int(bounds.gt is not None), 20 - int(bounds.lt is not None)
        return st.integers(first, last).map(lambda i: round(low_f + (high_f - low_f) * i / 20, 6))
    if attrs.has(hint):
        return class_tables(hint, depth)
    raise NotImplementedError(f"no strategy for {hint!r}; give the parameter draw=(…)")


@st.composite
def class_tables(draw: DrawFn, cls: Any, depth: int = DEPTH) -> dict[str, Any]:
    """A table of a class: each parameter is left at its default or drawn."""
    table: dict[str, Any] = {}
    for field in fields(cls):
        hint, bounds = hints(cls)[field.name], bounds_of(field)
        kind = kind_of(hint)
        if kind is not None and (depth <= 0 or not registry().names(kind.kind)):
            continue
        if (
            field.default is attrs.NOTHING
            or bounds.draw
            or (kind is not None and field.default is not None)
            or draw(st.booleans())
        ):
            table[field.name] = draw(parameter_values(hint, bounds, depth))
    return table


@st.composite
def component_tables(draw: DrawFn, kind: str, *, only: str | None = None, depth: int = DEPTH) -> dict[str, Any]:
    """A component of `kind` as a table with its ``kind`` key; simplest first. `only` fixes which one."""
    choices = [
        (len(fields(cls)), f"{plugin}/{name}", cls)
        for name, hits in registry().components.get(kind, {}).items()
        for plugin, cls in hits
        if only is None or only in (name, f"{plugin}/{name}")
    ]
    choices = sorted(c for c in choices if depth > 0 or not has_slots(c[2])) or sorted(choices)
    if not choices:
        raise FastSNNError(f"no {kind} is installed" + (f" called {only!r}" if only else ""))
    _, name, cls = draw(st.sampled_from(choices))
    return {"kind": name} | draw(class_tables(cls, depth))


def has_slots(cls: Any) -> bool:
    """Does a component class hold other components that it needs?"""
    return any(kind_of(hints(cls)[f.name]) and f.default is not None for f in fields(cls))


@st.composite
def components(draw: DrawFn, kind: str, *, only: str | None = None) -> Component:
    """A built component (drawn as a table, structured through the spec); combinations it refuses are not drawn."""
    from hypothesis import reject

    from fastsnn_core import spec

    table = draw(component_tables(kind, only=only))
    try:
        return spec.converter().structure(table, registry_kind(kind))
    except spec.Faults:
        reject()


def registry_kind(kind: str) -> type[Component]:
    """The base class of a kind."""
    from fastsnn_core.component import KINDS

    return KINDS[kind]


__getattr__ = former(__name__)  # what moved into fastsnn_kit
