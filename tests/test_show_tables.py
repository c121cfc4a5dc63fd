"""``fastsnn show NAME``: what the table says of a parameter is what the component takes, for every installed one."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from fastsnn_author.describe import component_text, described_component, to_json
from fastsnn_core import toml
from fastsnn_core.component import FLAGS, KINDS, fields
from fastsnn_core.plugins import registry

INSTALLED = [
    pytest.param(*registry().find(kind, name), id=f"{kind}:{name}") for kind in KINDS for name in registry().names(kind)
]


@pytest.mark.parametrize(("name", "cls"), INSTALLED)
def test_the_table_of_a_component_is_what_it_takes(name: str, cls: Any) -> None:
    data = described_component(name, cls)
    lines = component_text(data).splitlines()
    assert lines[0] == f"{cls.kind} {name}"
    assert lines[2].strip(), "no sentence or equation"
    kept = [flag for flag in FLAGS if getattr(cls, flag)]
    assert lines[-1] == "contract: " + (", ".join(kept) or "nothing promised")
    rows = {line.split(":")[0].strip(): line for line in lines if line.startswith("  ") and line[2] != " "}
    assert [r for r in rows if r in {f.name for f in fields(cls)}] == [f.name for f in fields(cls)]
    required = [f.name for f in fields(cls) if f.default is attrs.NOTHING]
    made = None if required else cls()
    for field in fields(cls):
        text = rows[field.name].split(" = ", 1)[1]
        doc = lines[lines.index(rows[field.name]) + 1]
        assert doc.startswith("      ")
        assert doc.strip(), f"{field.name} has no word"
        if field.name in required:
            assert text.startswith("required")
        elif made is not None and (value := getattr(made, field.name)) is not None:
            assert text.startswith(toml.toml_value(to_json(value))), field.name
        elif made is not None:
            assert text.startswith("none")
