"""Old import paths: each is the new module, with a warning, and says what to install where that is absent."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from fastsnn_core import moved

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
