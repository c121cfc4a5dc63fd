"""The spec: strict TOML to components and back, with every error of a file reported at once.

`load` and `loads` give a `Spec`; `dumps` writes it back filled (every default spelled out), and
``loads(dumps(spec)) == spec``. Sections other than ``[model]`` belong to whoever registers a class for them in the
entry-point group ``fastsnn1.sections`` (the train app brings ``[data]`` and ``[train]``).
"""

from __future__ import annotations

import importlib.metadata
import re
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, Union

import attrs
import cattrs
import tomli

from fastsnn_core import toml
from fastsnn_core.component import Component, Model, ParamError, bounds_of, fields, hints, kind_of, type_name
from fastsnn_core.errors import FastSNNError, did_you_mean
from fastsnn_core.locate import locate
from fastsnn_core.plugins import LookupFailure, registry
from fastsnn_core.targets import read_text

FORMAT = 1
Where = tuple[str | int, ...]


@attrs.frozen
class Problem:
    """One thing wrong with a spec: where, what, and what is possible."""

    path: Where
    message: str
    help: str = ""


class SpecError(FastSNNError):
    """All problems of a spec: ``file:line: path: message``, the source line and help for each."""

    def __init__(self, problems: list[Problem], text: str = "", source: str = "spec") -> None:
        found = [(line_of(text, p.path), p) for p in problems]
        self.problems = sorted(found, key=lambda hit: (hit[0] or 0, str(hit[1].path)))
        rows = []
        for line, p in self.problems:
            where = f"{source}:{line}: " if line else f"{source}: " if source else ""
            rows.append(f"{where}{dotted(p.path)}{': ' if p.path else ''}{p.message}")
            if line:
                rows.append(f"    {line} | {text.splitlines()[line - 1].strip()}")
            if p.help:
                rows.append(f"    help: {p.help}")
        super().__init__("\n".join(rows))


class Faults(Exception):
    """Problems found while structuring one value; paths are relative to it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(p.message for p in problems))
        self.problems = problems


@attrs.frozen
class Spec:
    """A parsed spec file: the model component, the sections of the apps, requirements and free-form notes."""

    model: Model
    sections: dict[str, Any] = attrs.field(factory=dict)
    requires: dict[str, str] = attrs.field(factory=dict)
    notes: dict[str, Any] = attrs.field(factory=dict)


def dotted(path: Where) -> str:
    """``model.attention[1].window``."""
    return re.sub(r"\.\[", "[", ".".join(f"[{s}]" if isinstance(s, int) else s for s in path))


def line_of(text: str, path: Where) -> int | None:
    """Line of the key, or of the closest table above it that exists."""
    while path and text:
        if line := locate(text, path):
            return line
        path = path[:-1]
    return None


def fault(error: BaseException) -> list[Problem]:
    """Problems in any exception that structuring may raise, cattrs' groups flattened."""
    if isinstance(error, Faults):
        return error.problems
    if isinstance(error, ParamError):
        return [Problem((error.where.rpartition(".")[2],), error.message, error.help)]
    if isinstance(error, LookupFailure):
        return [Problem((), error.message, error.help)]
    if isinstance(error, cattrs.IterableValidationError):
        found = []
        for sub in error.exceptions:
            index = next((n.index for n in getattr(sub, "__notes__", ()) if hasattr(n, "index")), None)
            at = () if index is None else (index,)
            found += [attrs.evolve(p, path=(*at, *p.path)) for p in fault(sub)]
        return found
    return [Problem((), str(error))]


@cache
def converter() -> cattrs.Converter:
    """cattrs made strict: no coercion, unknown keys are errors, components are looked up by ``kind``."""
    conv = cattrs.Converter(detailed_validation=True)
    for kind in (int, str, bool, float):
        conv.register_structure_hook(kind, strict)
    conv.register_structure_hook_func(lambda t: t is Any, lambda v, _: v)
    conv.register_structure_hook_func(lambda t: typing.get_origin(t) is tuple, tuple_of)
    conv.register_structure_hook_func(lambda t: isinstance(t, type) and attrs.has(t), structure_table)
    conv.register_structure_hook_func(lambda t: isinstance(t, type) and issubclass(t, Component), slot_component)
    conv.register_structure_hook_func(lambda t: typing.get_origin(t) in (Union, types.UnionType), optional)
    return conv


def strict(value: Any, kind: Any) -> Any:
    """int, float, str or bool exactly as written; an int is welcome where a float is asked for."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise Faults([Problem((), f"expected {kind.__name__}, got {type(value).__name__} {value!r}")])
    return value


def tuple_of(value: Any, hint: Any) -> tuple[Any, ...]:
    """A TOML array as a tuple; one component is accepted where a list of them is asked for."""
    item = typing.get_args(hint)[0]
    if kind_of(item) and not isinstance(value, list):
        value = [value]
    if not isinstance(value, list):
        raise Faults([Problem((), f"expected a {type_name(hint)}, got {type(value).__name__} {value!r}")])
    return tuple(converter().structure(value, list[item]))  # type: ignore[valid-type]


def optional(value: Any, hint: Any) -> Any:
    """``X | None``: TOML has no null, so whatever is written must be an X."""
    choices = [a for a in typing.get_args(hint) if a is not types.NoneType]
    return None if value is None else converter().structure(value, choices[0])


def slot_component(value: Any, hint: type[Component]) -> Any:
    """A slot: ``{ kind = "lif", tau = 4.0 }``, or just ``"lif"``."""
    value = {"kind": value} if isinstance(value, str) else value
    if isinstance(value, Component) and isinstance(value, hint):
        return value
    if not isinstance(value, dict):
        article = "an" if hint.kind[0] in "aeiou" else "a"
        message = f"expected {article} {hint.kind} table, got {type(value).__name__} {value!r}"
        raise Faults([Problem((), message, f'write {{ kind = "…" }}; {hint.kind}s: {installed_names(hint.kind)}')])
    if not isinstance(value.get("kind"), str):
        raise Faults([Problem((), f"this {hint.kind} does not say its kind", f"kinds: {installed_names(hint.kind)}")])
    try:
        cls = registry().find(hint.kind, value["kind"])[1]
    except LookupFailure as error:
        raise Faults([Problem(("kind",), error.message, error.help)]) from None
    return structure_table({k: v for k, v in value.items() if k != "kind"}, cls)


def installed_names(kind: str) -> str:
    """Installed short names of a kind, for help lines."""
    return ", ".join(registry().names(kind)) or "none installed"


def structure_table(value: Any, cls: Any) -> Any:
    """A table as an attrs class: every unknown key, wrong type and bound violation is collected."""
    label = getattr(cls, "name", "") or cls.__name__
    if isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise Faults([Problem((), f"expected a table for {label}, got {type(value).__name__} {value!r}")])
    known = {f.name: f for f in fields(cls)}
    problems, values = [], {}
    for key in value:
        if key not in known:
            help = did_you_mean(key, known, "parameters")
            problems.append(Problem((key,), f"{label} has no parameter {key!r}", help))
    for name, field in known.items():
        if name in value:
            try:
                values[name] = converter().structure(value[name], hints(cls)[name])
                if says := bounds_of(field).problem(values[name]):
                    problems.append(Problem((name,), says, bounds_of(field).doc))
            except Exception as error:
                problems += [attrs.evolve(p, path=(name, *p.path)) for p in fault(error)]
        elif field.default is attrs.NOTHING:
            problems.append(
                Problem((), f"{label} needs {name!r} ({type_name(hints(cls)[name])})", bounds_of(field).doc)
            )
    if problems:
        raise Faults(problems)
    try:
        return cls(**values)
    except (ValueError, TypeError, LookupFailure) as error:
        raise Faults(fault(error)) from error


@cache
def section_points() -> dict[str, Any]:
    """Entry points of the sections apps add, by section name; nothing is imported."""
    return {p.name: p for p in importlib.metadata.entry_points(group="fastsnn1.sections")}


def loads(text: str, source: str = "spec.toml") -> Spec:
    """Parse and check a spec; `SpecError` carries every problem."""
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        lines = text.splitlines()
        shown = f"\n    {error.lineno} | {lines[error.lineno - 1].strip()}" if error.lineno <= len(lines) else ""
        raise SpecError(
            [Problem((), f"{error.msg} (column {error.colno}){shown}")], "", f"{source}:{error.lineno}"
        ) from None
    return from_table(data, text, source)


def load(path: str | Path) -> Spec:
    """`loads` of a file."""
    return loads(read_text(path), str(path))


def from_table(data: dict[str, Any], text: str = "", source: str = "spec") -> Spec:
    """A parsed table (TOML or a bundle's config.json) to a `Spec`."""
    problems, done = [], {}
    version = data.get("fastsnn")
    if type(version) is not int:
        problems.append(Problem(("fastsnn",), "a spec starts with its format version", f"write `fastsnn = {FORMAT}`"))
    elif version != FORMAT:
        newer = "install a newer fastsnn-core" if version > FORMAT else "formats start at 1"
        problems.append(Problem(("fastsnn",), f"format {version}, this core reads {FORMAT}", newer))
    sections = {k: v for k, v in data.items() if k not in ("fastsnn", "model", "requires", "notes")}
    for name in ("requires", "notes"):
        if not isinstance(data.get(name, {}), dict):
            problems.append(Problem((name,), f"expected a table, got {data[name]!r}"))
    problems += unmet(data["requires"]) if isinstance(data.get("requires"), dict) else []
    wanted: dict[str, Any] = {"model": Model}
    for name in sections:
        if point := section_points().get(name):
            wanted[name] = point.load()
        else:
            known = ["model", "requires", "notes", *section_points()]
            problems.append(Problem((name,), f"no section called {name!r}", did_you_mean(name, known, "sections")))
    for name, cls in wanted.items():
        if name not in data:
            problems.append(
                Problem((), f"no [{name}] table", f'write [{name}] with kind = "…"; models: {installed_names("model")}')
            )
            continue
        try:
            done[name] = converter().structure(data[name], cls)
        except Exception as error:
            problems += [attrs.evolve(p, path=(name, *p.path)) for p in fault(error)]
    if problems:
        raise SpecError(problems, text, source)
    return Spec(done.pop("model"), done, dict(data.get("requires", {})), dict(data.get("notes", {})))


def unmet(requires: dict[str, Any]) -> list[Problem]:
    """Requirements (``acme-neurons = ">=0.3,<2"``) that this environment does not meet."""
    from fastsnn_core.versions import installed_version, satisfies

    problems = []
    for name, wanted in requires.items():
        have = installed_version(name)
        if not have or not isinstance(wanted, str) or satisfies(have, wanted) is not True:
            says = f"{name} {have} does not satisfy {wanted!r}" if have else f"{name} is not installed"
            problems.append(Problem(("requires", name), says, f"pip install '{name}{wanted}'"))
    return problems


def to_table(value: Any, qualified: bool = False) -> Any:
    """A component (or section, or tuple) as plain tables: every field spelled out, None left out."""
    if isinstance(value, tuple | list):
        return [to_table(v, qualified) for v in value]
    if isinstance(value, dict):
        return {k: to_table(v, qualified) for k, v in value.items()}
    if not attrs.has(type(value)):
        return value
    head = {}
    if isinstance(value, Component):
        head = {"kind": registry().qualified(value) if qualified else short_name(value)}
    rows = {}
    for field in attrs.fields(type(value)):
        item = getattr(value, field.name)
        if item is not None:
            widen = hints(type(value))[field.name] is float and isinstance(item, int)
            rows[field.name] = float(item) if widen else to_table(item, qualified)
    return head | rows


def short_name(part: Component) -> str:
    """The short name, or the qualified one where the short one is ambiguous."""
    hits = registry().components.get(part.kind, {}).get(part.name, [])
    return registry().qualified(part) if len(hits) > 1 else part.name


def as_table(spec: Spec, qualified: bool = False) -> dict[str, Any]:
    """The whole spec as one plain table, filled."""
    full: dict[str, Any] = {"fastsnn": FORMAT, "model": to_table(spec.model, qualified)}
    full |= {name: to_table(section, qualified) for name, section in spec.sections.items()}
    return full | {k: v for k, v in (("requires", spec.requires), ("notes", spec.notes)) if v}


def dumps(spec: Spec | Model) -> str:
    """The filled spec as TOML; ``loads(dumps(spec)) == spec``."""
    return toml.dumps(as_table(spec if isinstance(spec, Spec) else Spec(spec)))
