"""One meaning, one name: a function or class of a module, private ones too, is no namesake of another one."""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = {
    "__dir__": "Python's own hook of a module",
    "as_table": "what a spec, or a library's part of a bundle, writes",
    "build": "a model of its spec; what `serve run` calls for an application of its arguments",
    "check": "the verb, and what files a check of the conformance kit",
    "components": "of a kind, drawn for a test; those that a library's part of a bundle names",
    "dumps": "to text, as json.dumps: spec (TOML of a spec), toml (of a table), strict_json",
    "evaluate": "the verb, and what it calls",
    "input_major": "an operator, and the kernel that implements it",
    "kernels": "the usable kernel sets, and the sections of `fastsnn doctor` and `fastsnn show` about them",
    "load": "from a file, as json.load: bundle, spec",
    "main": "what a command line calls",
    "new_plugin": "the verb, and what it calls",
    "poisoned": "a block whose fresh memory is NaN, and the pytest fixture that is this block",
    "prepare": "a library's part of a bundle handed back to it, and what hands it",
    "report": "what a model did: in its event runtime, and under its scopes",
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


def operator_twin(module: str, doc: str) -> bool:
    """Is it a kernel's version of an operator, or samples of its operands? These have the operator's own name."""
    return module.endswith(".samples") or (module.startswith("fastsnn_kernel_") and doc.startswith(("Twin of", "As `")))


def named_by_decorator(node: ast.stmt) -> bool:
    """Hooks, checks of the kit (whose name is what is promised) and overloads have a name that others look for."""
    words = ("hookimpl", "check(", "overload", "register_fake")
    return any(word in ast.unparse(d) for d in getattr(node, "decorator_list", ()) for word in words)


def namesakes(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Name → the modules, two or more, that define a function or class of that name, private ones too."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        for node in tree.body:
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                and not named_by_decorator(node)
                and not operator_twin(module, ast.get_docstring(node) or "")
            ):
                found[node.name].add(module)
    return {name: sorted(modules) for name, modules in found.items() if len(modules) > 1}


def test_a_name_means_one_thing() -> None:
    twice = namesakes(dict(sources()))
    assert {name: modules for name, modules in twice.items() if name not in SHARED} == {}
    assert SHARED.keys() <= twice.keys() | {"input_major"}


def test_a_function_name_means_one_thing() -> None:
    found = used_elsewhere(dict(sources()))
    assert len(found) > 500  # the scan sees the functions
    twice = {name: sorted(modules) for name, modules in found.items() if len(modules) > 1}
    assert {name: modules for name, modules in twice.items() if name not in SHARED} == {}


def test_a_namesake_is_found() -> None:
    code = {
        "a": "def settle(x): ...",
        "b": "def settle(y): ...\ndef alone(): ...",
        "c": "from a import settle\nimport b\nb.settle(1)\nb.alone()",
    }
    found = used_elsewhere({name: ast.parse(text) for name, text in code.items()})
    assert found == {"settle": {"a", "b"}, "alone": {"b"}}


def test_a_private_namesake_and_a_class_are_found() -> None:
    code = {
        "a": "def _room(x): ...\nclass Plan: ...\n@hookimpl\ndef hook(): ...",
        "b": "def _room(y): ...\nclass Plan: ...\n@hookimpl\ndef hook(): ...",
        "fastsnn_kernel_c": 'def scan(): "Twin of `d.scan_naive`."\ndef pack(): "Rows."',
        "d": "def scan(): ...\ndef pack(): ...",
    }
    assert namesakes({name: ast.parse(text) for name, text in code.items()}) == {
        "Plan": ["a", "b"],
        "_room": ["a", "b"],
        "pack": ["d", "fastsnn_kernel_c"],
    }
