"""Old import paths, found when an import fails, with a DeprecationWarning that names the new place.

This table is core's; other distributions add theirs (`add`) when they are imported, which Python does before it looks
for a module inside them. Paths that the project's first documents show (`fastsnn.builder.config` and its kin) are real
modules and stay for ever; these are kept for one release.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES: dict[str, str] = {
    "fastsnn_core.coding": "fastsnn_events.coder_helpers",
    "fastsnn_core.contention": "fastsnn_console.contention",
    "fastsnn_core.conversion": "fastsnn_conversion.context",
    "fastsnn_core.describe": "fastsnn_author.describe",
    "fastsnn_core.folding": "fastsnn_conversion.time_folding",
    "fastsnn_core.inputs": "fastsnn_modules.inputs",
    "fastsnn_core.leaky": "fastsnn_leaky.neurons",
    "fastsnn_core.ops.conv": "fastsnn_events.conv",
    "fastsnn_core.ops.decode": "fastsnn_core.lowering",
    "fastsnn_core.ops.event": "fastsnn_events.linear",
    "fastsnn_core.ops.exact": "fastsnn_integer.deterministic",
    "fastsnn_core.ops.lif": "fastsnn_leaky.scan",
    "fastsnn_core.ops.linear_scan": "fastsnn_linear_scan",
    "fastsnn_core.ops.operands": "fastsnn_modules.operands",
    "fastsnn_core.ops.rounding": "fastsnn_core.ops.surrogate_gradient",
    "fastsnn_core.ops.rows": "fastsnn_integer.fused_row_ops",
    "fastsnn_core.ops.samples": "fastsnn_events.samples",
    "fastsnn_core.passing": "fastsnn_conversion.spike_layers",
    "fastsnn_core.plan_check": "fastsnn_integer.plan_check",
    "fastsnn_core.progress": "fastsnn_console.progress",
    "fastsnn_core.quant": "fastsnn_integer.quantization",
    "fastsnn_core.run": "fastsnn_core.training_run",
    "fastsnn_core.runtime": "fastsnn_events.runtime",
    "fastsnn_core.runtime_paths": "fastsnn_scope_paths.runtime_paths",
    "fastsnn_core.scaffold": "fastsnn_author.scaffold",
    "fastsnn_core.shown": "fastsnn_modules.shown",
    "fastsnn_core.templates": "fastsnn_author.scaffold",
    "fastsnn_core.testing.models": "fastsnn_kit.models",
    "fastsnn_core.testing.rules": "fastsnn_conversion.testing",
    "fastsnn_core.testing.runtimes": "fastsnn_integer.testing",
    "fastsnn_core.token_ids": "fastsnn_modules.token_ids",
}
NAMES: dict[str, str] = {
    "fastsnn_core.arguments.device": "fastsnn_console.arguments",
    "fastsnn_core.arguments.listed": "fastsnn_console.arguments",
    "fastsnn_core.arguments.number": "fastsnn_console.arguments",
    "fastsnn_core.arguments.port": "fastsnn_console.arguments",
    "fastsnn_core.ops.count_linear": "fastsnn_events",
    "fastsnn_core.ops.event_linear": "fastsnn_events",
    "fastsnn_core.ops.input_major": "fastsnn_events",
    "fastsnn_core.ops.lif_scan": "fastsnn_leaky",
    "fastsnn_core.ops.linear_scan": "fastsnn_linear_scan",
    "fastsnn_core.ops.linear_scan_naive": "fastsnn_linear_scan",
    "fastsnn_core.ops.linear_step": "fastsnn_linear_scan",
    "fastsnn_core.ops.spike_linear": "fastsnn_events",
    "fastsnn_core.ops.thresholds": "fastsnn_leaky",
    "fastsnn_core.targets.anything": "fastsnn_console.targets",
    "fastsnn_core.targets.existing": "fastsnn_console.targets",
    "fastsnn_core.targets.file": "fastsnn_console.targets",
    "fastsnn_core.targets.folder": "fastsnn_console.targets",
}


def attribute(package: str, name: str) -> Any:
    """An attribute that `package` had before; AttributeError for any other."""
    old = f"{package}.{name}"
    if old not in NAMES and old not in MODULES:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    if old in NAMES:
        say(old, NAMES[old])
        return getattr(bring(old, NAMES[old]), name)
    say(old, MODULES[old])
    return bring(old, MODULES[old])


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
