"""Old import paths: each is the new module, with a warning, and says what to install where that is absent."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fastsnn_core import moved

ROOT = Path(__file__).resolve().parents[1]
SEEDS = [
    "fastsnn.builder.config",
    "fastsnn.builder.model_from_config",
    "fastsnn.convert.ann2snn",
    "fastsnn.train.trainer",
]


for package in ("convert", "kernel_numba", "model_decoder", "serve", "train"):
    importlib.import_module(f"fastsnn_{package}")  # they add their own paths


@pytest.mark.parametrize("old", sorted(moved.MODULES))
def test_an_old_path_is_the_new_module(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {moved.MODULES[old]}"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(moved.MODULES[old])


@pytest.mark.parametrize("old", sorted(moved.NAMES))
def test_an_old_name_is_still_there(old):
    package, _, name = old.rpartition(".")
    vars(importlib.import_module(package)).pop(name, None)  # a test before may have imported the module of that name
    with pytest.warns(DeprecationWarning, match=old):
        assert getattr(importlib.import_module(package), name) is not None


def test_an_old_name_of_a_function_is_the_new_function():
    from fastsnn_integer import quantization

    for old, new in quantization.OLD.items():
        with pytest.warns(DeprecationWarning, match=f"{old} is now fastsnn_integer.quantization.{new}"):
            assert getattr(quantization, old) is getattr(quantization, new)
    with pytest.raises(AttributeError, match="never_was"):
        _ = quantization.never_was


def classes_that_were_renamed() -> list[tuple[str, str, str]]:
    """``(module, old name, new name)`` of every ``__getattr__ = renamed(__name__, {…})`` with its table in place."""
    found = []
    for path in ROOT.glob("plugins/*/*/*/**/*.py"):
        for node in (
            ast.parse(path.read_text(encoding="utf-8")).body if "= renamed(__name__" in path.read_text() else ()
        ):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                where = path.relative_to(ROOT).with_suffix("").parts[3:]
                module = ".".join(where).removesuffix(".__init__")
                if ast.unparse(node.targets[0]) == "__getattr__" and isinstance(node.value.args[1], ast.Dict):
                    found += [(module, old, new) for old, new in ast.literal_eval(node.value.args[1]).items()]
    return found


def test_an_old_name_of_a_class_is_the_new_class():
    found = classes_that_were_renamed()
    assert ("fastsnn_rule_linear_layer", "Linear", "LinearRule") in found
    for module, old, new in found:
        there = importlib.import_module(module)
        with pytest.warns(DeprecationWarning, match=f"{module}.{old} is now {module}.{new}"):
            assert getattr(there, old) is getattr(there, new)


def test_the_seeds_paths_do_not_warn():
    code = "import warnings; warnings.simplefilter('error', DeprecationWarning)\n" + "\n".join(
        f"import {p}" for p in SEEDS
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_library_that_is_absent_is_named(monkeypatch):
    monkeypatch.setitem(moved.MODULES, "fastsnn_core.nowhere", "fastsnn_nowhere.thing")
    with (
        pytest.warns(DeprecationWarning, match="fastsnn_core.nowhere is now"),
        pytest.raises(ImportError, match="pip install fastsnn-nowhere"),
    ):
        importlib.import_module("fastsnn_core.nowhere")


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fastsnn_core.never_was")
    with pytest.raises(AttributeError, match="never_was"):
        _ = importlib.import_module("fastsnn_core.ops").never_was
