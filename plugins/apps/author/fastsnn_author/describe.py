"""What ``fastsnn show`` says: a component's equation, parameters and contract; which kernel runs which operator."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import attrs

from fastsnn_core.component import FLAGS, KINDS, Component, bounds_of, fields, hints, type_name
from fastsnn_core.plugins import LookupFailure, registry


def components_named(name: str) -> list[dict[str, Any]]:
    """Every component of that name, of any kind (``neuron:lif`` for one kind)."""
    wanted, _, short = name.rpartition(":")
    if wanted and wanted not in KINDS:
        raise LookupFailure(f"no kind called {wanted!r}", f"kinds: {', '.join(KINDS)}")
    found, failures = [], []
    for kind in [wanted] if wanted else KINDS:
        try:
            qualified, cls = registry().find(kind, short)
            found.append(described_component(qualified, cls))
        except LookupFailure as error:
            failures.append(error)
    if found:
        return found
    telling = [e for e in failures if "ambiguous" in e.message or "did you mean" in e.help or "pip install" in e.help]
    if telling:
        raise telling[0]
    names = ", ".join(f"{kind}: {', '.join(registry().names(kind))}" for kind in KINDS if registry().names(kind))
    raise LookupFailure(f"no component called {name!r}", f"installed: {names or 'none'}")


def described_component(qualified: str, cls: type[Component]) -> dict[str, Any]:
    """One component as plain data."""
    rows = []
    for field in fields(cls):
        bounds, hint = bounds_of(field), hints(cls)[field.name]
        default: Any = field.default
        if hasattr(default, "factory"):
            try:
                default = default.factory()
            except LookupError:
                default = "not installed"
        rows.append(
            {
                "name": field.name,
                "type": type_name(hint),
                "default": None if default is attrs.NOTHING else to_json(default),
                "required": default is attrs.NOTHING,
                "bounds": bounds.describe(),
                "unit": bounds.unit,
                "doc": bounds.doc,
            }
        )
    return {
        "kind": cls.kind,
        "name": qualified,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "parameters": rows,
        "contract": {flag: getattr(cls, flag) for flag in FLAGS},
    }


def describe_bundle(path: str) -> dict[str, Any]:
    """What a bundle holds: its spec, sizes by number type, runtime, history, report; its files are verified."""
    from safetensors import safe_open

    from fastsnn_core import bundle as bundles

    table, meta = bundles.verify(path)
    numbers, nbytes = dict[str, int](), dict[str, int]()
    with safe_open(Path(path) / bundles.WEIGHTS, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            kind = str(tensor.dtype).removeprefix("torch.")
            numbers[kind] = numbers.get(kind, 0) + tensor.numel()
            nbytes[kind] = nbytes.get(kind, 0) + tensor.nbytes
    return {
        "bundle": str(path),
        "model": table["model"],
        "numbers": numbers,
        "bytes": nbytes,
        "runtime": table.get("runtime", {"mode": "count"}),
        "distributions": table["distributions"],
        "files": {name: row["bytes"] for name, row in meta["files"].items()},
        "milestones": meta.get("milestones", []),
        "created": meta.get("created"),
        "report": bundle_report(Path(path) / bundles.REPORT),
    }


def bundle_report(folder: Path) -> dict[str, Any] | None:
    """Page and first figures of the report inside a bundle, ``{"page", "created", "saved"}``; None without one."""
    page, numbers = folder / "index.html", folder / "report.json"
    if not page.is_file():
        return None
    found = json.loads(numbers.read_text(encoding="utf-8")) if numbers.is_file() else {}
    saved = [{key: row.get(key) for key in ("label", "value", "says", "number")} for row in found.get("saved", [])]
    return {"page": str(page), "created": found.get("created"), "saved": saved}


def bundle_text(data: dict[str, Any]) -> str:
    """The same as text."""
    from fastsnn_core import toml

    sizes = [f"{n:,} {kind} ({data['bytes'][kind]:,} bytes)" for kind, n in sorted(data["numbers"].items())]
    running = data["runtime"]
    coder = f", {running['coder']['kind']} coder" if "coder" in running else ""
    lines = [
        f"bundle {data['bundle']}, {sum(data['files'].values()):,} bytes in {len(data['files'])} files, all intact"
    ]
    lines += ["numbers: " + ", ".join(sizes), f"runtime: {running['mode']}{coder}"]
    lines += [f"needs: {', '.join(f'{name} {version}' for name, version in data['distributions'].items())}"]
    for row in data["milestones"]:
        lines.append(f"history: {row.get('what', '?')}{milestone_facts(row)}")
    if data["report"] is None:
        lines.append(f"report: none; fastsnn scope {data['bundle']} makes one, fastsnn export --report puts it inside")
    else:
        lines.append(f"report: {data['report']['page']}  (--open shows it)")
        lines += [f"  {row['label']}: {row['value']}" for row in data["report"]["saved"]]
    lines += ["", "[model]"]
    for key, value in data["model"].items():
        if value is not None:
            lines.append(f"{key} = {toml.toml_value(value)}")
    return "\n".join(lines)


def milestone_facts(row: dict[str, Any], most: int = 8) -> str:
    """``: steps 100, loss 2.31``: the plain facts of a milestone, those of tables left to ``--json``."""
    short = {
        k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items() if isinstance(v, str | int | float)
    }
    says = [f"{k.replace('_', ' ')} {v}" for k, v in short.items() if k != "what" and len(v) < 60]
    return (": " + ", ".join(says[:most]) + (", …" if len(says) > most else "")) if says else ""


def to_json(value: Any) -> Any:
    """A default as JSON data."""
    from fastsnn_core.spec import to_table

    return to_table(value)


def component_text(data: dict[str, Any]) -> str:
    """One component as text."""
    from fastsnn_core import toml

    lines = [f"{data['kind']} {data['name']}", "", data["doc"]]
    if data["parameters"]:
        lines += ["", "parameters"]
    for row in data["parameters"]:
        default = (
            "required" if row["required"] else "none" if row["default"] is None else toml.toml_value(row["default"])
        )
        facts = "; ".join(filter(None, [row["bounds"], row["unit"]]))
        lines.append(f"  {row['name']}: {row['type']} = {default}{f'   [{facts}]' if facts else ''}")
        lines.append(f"      {row['doc']}")
    kept = [flag for flag, value in data["contract"].items() if value]
    return "\n".join([*lines, "", "contract: " + ", ".join(kept or ["nothing promised"])])
