"""Writes docs/kinds/<kind>.md from the hooks and the first-party components: ``python docs/docs_kinds.py``."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import attrs

from fastsnn_author import describe
from fastsnn_core import hookspecs, toml
from fastsnn_core.catalogue import FIRST_PARTY
from fastsnn_core.component import KINDS, Component, bounds_of, fields, hints, type_name
from fastsnn_core.plugins import registry
from fastsnn_core.testing.conformance import CHECKS, load_kit

HERE = Path(__file__).parent / "kinds"


def plain_parts(cls: type) -> list[type]:
    """Attrs classes that a component's parameters are made of and that are no components themselves."""
    found = []
    for hint in hints(cls).values():
        for arg in typing.get_args(hint):
            if attrs.has(arg) and not issubclass(arg, Component) and arg not in found:
                found.append(arg)
    return found


def page(kind: str) -> str:
    """The page of a kind: its contract, its checks, its first-party components."""
    load_kit()
    hook, base = getattr(hookspecs, hookspecs.hook_of(kind)), KINDS[kind]
    lines = [f"# {kind}", "", inspect.cleandoc(base.__doc__ or ""), ""]
    lines += [f"Hook: `{hookspecs.hook_of(kind)}`. {inspect.cleandoc(hook.__doc__)}", ""]
    lines += [f"A new one: `fastsnn new-plugin {kind} acme-{kind}`. The kit checks:", ""]
    lines += [
        f"- *{name}*: {inspect.cleandoc(check.__doc__ or '').splitlines()[0]}"
        for name, check in sorted(CHECKS[kind].items())
    ]
    for name in FIRST_PARTY.get(kind, ()):
        data = describe.described_component(*registry().find(kind, name))
        lines += [
            "",
            f"## {name}",
            "",
            f"`pip install $(python docs/install_lines.py fastsnn-{kind}-{re.sub('[_.]', '-', name)})` (from a "
            "checkout; `oneclick.py` installs all)",
            "",
            "```text",
            data["doc"],
            "```",
        ]
        if data["parameters"]:
            lines += ["", "| parameter | type | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
        for row in data["parameters"]:
            default = (
                "required"
                if row["required"]
                else ""
                if row["default"] is None
                else f"`{toml.toml_value(row['default'])}`"
            )
            allowed = "; ".join(filter(None, [row["bounds"], row["unit"]]))
            cells = (f"`{row['name']}`", row["type"], default, allowed, row["doc"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        for part in plain_parts(registry().find(kind, name)[1]):
            lines += ["", f"`{part.__name__}`: {inspect.cleandoc(part.__doc__ or '')}", ""]
            lines += ["| field | type | allowed | meaning |", "| --- | --- | --- | --- |"]
            for field in fields(part):
                bounds = bounds_of(field)
                cells = (f"`{field.name}`", type_name(hints(part)[field.name]), bounds.describe(), bounds.doc)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        broken = [flag for flag, kept in data["contract"].items() if not kept]
        if broken:
            lines += ["", f"Does not promise: {', '.join(broken)}."]
    return "\n".join(lines) + "\n"


def write() -> None:
    """Write every page."""
    HERE.mkdir(exist_ok=True)
    for kind in KINDS:
        (HERE / f"{kind}.md").write_text(page(kind), encoding="utf-8")


if __name__ == "__main__":
    write()
