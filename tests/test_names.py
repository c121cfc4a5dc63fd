"""One meaning, one name: a function that other modules import is not the namesake of another one."""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = {
    "dumps": "to text, as json.dumps: spec (TOML of a spec), toml (of a table), strict_json",
    "input_major": "an operator, and the kernel that implements it",
    "load": "from a file, as json.load: bundle, spec",
    "main": "what a command line calls",
    "save": "to a folder: bundle, checkpoint",
    "verify": "the files of a folder that `save` wrote: bundle, checkpoint",
}
"""Names that two modules may have, and what they mean in both."""


def sources(root: Path = ROOT) -> Iterator[tuple[str, ast.Module]]:
    """``(dotted name, tree)`` of every module that is shipped."""
    for line in subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=root, text=True
    ).split():
        path = Path(line)
        skip = 0 if path.parts[0] == "fastsnn_core" else {"plugins": 3, "contrib": 2}.get(path.parts[0], 99)
        if len(path.parts) > skip + 1 and not path.name.startswith("test_") and (root / path).exists():
            name = ".".join(path.with_suffix("").parts[skip:]).removesuffix(".__init__")
            yield name, ast.parse((root / path).read_text(encoding="utf-8"))


def used_elsewhere(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Name → the modules that define a public function of that name which another module uses."""
    defined = {
        (module, node.name)
        for module, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    }
    found: dict[str, set[str]] = defaultdict(set)
    for user, tree in trees.items():
        modules, uses = {}, set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                uses |= {(node.module, a.name) for a in node.names}
                modules |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            elif isinstance(node, ast.Import):
                modules |= {a.asname or a.name: a.name for a in node.names}
        uses |= {
            (modules.get(ast.unparse(node.value)), node.attr)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        for module, name in uses & defined:
            if module != user:
                found[name].add(module)
    return found


def test_a_function_name_means_one_thing() -> None:
    found = used_elsewhere(dict(sources()))
    assert len(found) > 500  # the scan sees the functions
    twice = {name: sorted(modules) for name, modules in found.items() if len(modules) > 1}
    assert {name: modules for name, modules in twice.items() if name not in SHARED} == {}
    assert SHARED.keys() <= twice.keys()


def test_a_namesake_is_found() -> None:
    code = {
        "a": "def settle(x): ...",
        "b": "def settle(y): ...\ndef alone(): ...",
        "c": "from a import settle\nimport b\nb.settle(1)\nb.alone()",
    }
    found = used_elsewhere({name: ast.parse(text) for name, text in code.items()})
    assert found == {"settle": {"a", "b"}, "alone": {"b"}}
