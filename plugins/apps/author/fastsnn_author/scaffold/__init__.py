"""``fastsnn new-plugin KIND NAME``: the four files of a plugin, passing their own conformance from the start."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import keyword
import re
import sys
from pathlib import Path

from fastsnn_console import targets
from fastsnn_core.component import KINDS
from fastsnn_core.errors import FastSNNError
from fastsnn_core.files import beside
from fastsnn_core.hookspecs import hook_of

HERE = Path(__file__).parent
SLOTTED = ("surrogate", "neuron", "coder", "attention", "feedforward", "model")
NEEDS = {  # libraries that a template imports
    "coder": ("fastsnn-events",),
    "rule": ("fastsnn-conversion",),
    "attention_fused": ("fastsnn-integer", "fastsnn-linear-scan"),
}
FUSED = tuple(sorted(p.name.removesuffix("_fused.py.tmpl") for p in HERE.glob("*_fused.py.tmpl")))


class ScaffoldError(FastSNNError):
    """A plugin that cannot be scaffolded: says why and what is possible."""


def taken_by(module: str, name: str) -> str:
    """What is installed under this module or distribution name already; the empty string where nothing is."""
    if module in sys.stdlib_module_names or module in sys.builtin_module_names:
        return "Python's standard library"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"the distribution {importlib.metadata.distribution(name).name}"
    found = importlib.util.find_spec(module)
    return f"the module {found.origin or module}" if found is not None else ""


def new_plugin(kind: str, name: str, out: str | Path = ".", fused: bool = False) -> Path:
    """Write the four files of a plugin into the new folder ``out/name``; returns it. `fused`: one with ``lower()``.

    Errors (`ScaffoldError`): no such kind, no fused form of it, no name or one that is taken, a folder that exists.
    """
    if kind not in KINDS:
        raise ScaffoldError(f"no kind called {kind!r}; kinds: {', '.join(KINDS)}")
    if fused and kind not in FUSED:
        raise ScaffoldError(f"no fused form of a {kind} to begin with; kinds that have one: {', '.join(FUSED)}")
    source = f"{kind}_fused" if fused else kind
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise ScaffoldError(f"{name!r} is no plugin name; use lower-case letters, digits and dashes, as in acme-lif")
    if taken := taken_by(module, name):
        raise ScaffoldError(f"{name!r} is taken by {taken}, which pip install would replace; try acme-{name}")
    folder = targets.folder(Path(out, name), option="--out")
    if folder.exists():
        raise ScaffoldError(f"{folder} exists; it is left alone. Choose another name or remove it")
    words = {
        "@class": "".join(part.capitalize() for part in module.split("_")),
        "@offer": hook_of(kind),
        "@kinds": f"{kind}s",
        "@kind": kind,
        "@dist": name.replace("_", "-"),
        "@title": module.replace("_", " ").capitalize(),
        "@name": module,
        "@needs": ", ".join(f'"{d}>=0.1,<1"' for d in ("fastsnn-core", *NEEDS.get(source, ()))),
    }

    def fill(template: str) -> str:
        text = (HERE / f"{template}.tmpl").read_text(encoding="utf-8")
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        return text

    with beside(folder) as scratch:
        scratch.mkdir(parents=True)
        (scratch / "pyproject.toml").write_text(fill("pyproject.toml"), encoding="utf-8")
        (scratch / f"{module}.py").write_text(fill(f"{source}.py"), encoding="utf-8")
        (scratch / f"test_{module}.py").write_text(fill("test.py"), encoding="utf-8")
        (scratch / "README.md").write_text(fill("README.slot.md" if kind in SLOTTED else "README.md"), encoding="utf-8")
    return folder
