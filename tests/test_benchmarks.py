"""Benchmarks run by hand: a name of ours that one takes and that is gone would be seen months later."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


def taken(text: str) -> list[str]:
    """``module.name`` of ours, as imported or as an attribute of an imported module."""
    tree, modules, found = ast.parse(text), dict[str, str](), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastsnn"):
            for name in node.names:
                found.append(f"{node.module}.{name.name}")
                modules[name.asname or name.name] = found[-1]
        elif isinstance(node, ast.Import):
            modules |= {n.asname or n.name: n.name for n in node.names if n.name.startswith("fastsnn")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.append(f"{modules[node.value.id]}.{node.attr}")
    return found


def missing(text: str) -> list[str]:
    """Those of `taken` that are not there."""
    gone = []
    for place in taken(text):
        owner, _, name = place.rpartition(".")
        try:
            module = importlib.import_module(owner)
        except ModuleNotFoundError:
            continue  # an attribute of a class, or a package that is not installed here
        if hasattr(module, name):
            continue
        try:
            importlib.import_module(place)
        except ModuleNotFoundError:
            gone.append(place)
    return gone


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_names_of_ours_that_benchmarks_take_exist(script):
    assert not missing(script.read_text(encoding="utf-8"))


def test_a_name_that_is_gone_is_found():
    text = "from fastsnn_core import errors, nothing\nimport fastsnn_core.site as s\nerrors.Gone\ns.sites\ns.seats\n"
    assert missing(text) == ["fastsnn_core.nothing", "fastsnn_core.errors.Gone", "fastsnn_core.site.seats"]
