"""Old import paths, found when an import fails, with a DeprecationWarning that names the new place.

The table in moved.json is core's; other distributions add theirs (`add`) when they are imported, which Python does
before it looks for a module inside them. Paths that the project's first documents show (`fastsnn.builder.config` and
its kin) are real modules and stay for ever; these are kept for one release.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_TABLE = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
MODULES: dict[str, str] = _TABLE["modules"]
"""Old module → new module."""
NAMES: dict[str, str] = _TABLE["names"]
"""Old name in a module that is still there → the module that has it now, with ``:new_name`` where it has another."""


def attribute(package: str, name: str) -> Any:
    """An attribute that `package` had before; AttributeError for any other."""
    old = f"{package}.{name}"
    if old not in NAMES and old not in MODULES:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    if old in NAMES:
        module, _, new = NAMES[old].partition(":")
        say(old, f"{module}.{new or name}")
        return getattr(bring(old, module), new or name)
    say(old, MODULES[old])
    return bring(old, MODULES[old])


def former(package: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module some of whose names have moved elsewhere (`NAMES`)."""
    return lambda name: attribute(package, name)


def add(package: str, table: Mapping[str, str]) -> None:
    """Old modules of `package` and where they are now inside it: ``{"trainer": "loop.trainer"}``."""
    MODULES.update({f"{package}.{old}": f"{package}.{new}" for old, new in table.items()})


def renamed(module: str, table: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module some of whose names have changed: ``{"old": "new"}``, each with a warning."""

    def found(name: str) -> Any:
        if name not in table:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        say(f"{module}.{name}", f"{module}.{table[name]}")
        return getattr(sys.modules[module], table[name])

    return found


def say(old: str, new: str) -> None:
    """Warn whoever imports `old`."""
    warnings.warn(f"{old} is now {new}; the old path goes with the next release", DeprecationWarning, stacklevel=4)


def bring(old: str, new: str) -> ModuleType:
    """The module at its new place, or an error that says what to install."""
    try:
        return importlib.import_module(new)
    except ModuleNotFoundError as error:
        top = new.partition(".")[0]
        if error.name != top:
            raise
        raise ImportError(f"{old} is now {new}: pip install {top.replace('_', '-')}") from None


class Moved:
    """Finder and loader of the old paths: the old name becomes another name of the new module."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A spec where `name` is an old path."""
        return importlib.util.spec_from_loader(name, Moved()) if name in MODULES else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """The ordinary empty module; `exec_module` replaces it."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Put the new module under the old name."""
        old = module.__name__
        say(old, MODULES[old])
        sys.modules[old] = bring(old, MODULES[old])


def install() -> None:
    """Ask `Moved` after everybody else, once."""
    if not any(finder is Moved for finder in sys.meta_path):
        sys.meta_path.append(Moved)
