"""Functions that are imported when they are first called: kernels of a compiler, samples of the conformance kit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def imported_later(path: str) -> Callable[..., Any]:
    """The function at ``package.module.function``, whose module is imported when it is first called."""
    module, _, name = path.rpartition(".")

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args)

    return call


def kernel_later(path: str) -> Callable[..., Any]:
    """`imported_later` for an operator's kernel: ``unchecked`` is the one that takes operands as checked already."""
    module, _, name = path.rpartition(".")
    found: list[Callable[..., Any]] = []

    def unchecked(*args: Any) -> Any:
        if not found:
            function = getattr(importlib.import_module(module), name)
            found.append(getattr(function, "unchecked", function))
        return found[0](*args)

    call = imported_later(path)
    call.unchecked = unchecked  # type: ignore[attr-defined]  # dispatch looks for it on the function
    return call
