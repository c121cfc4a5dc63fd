"""Which implementation an operator takes: the best kernel for the device, else its naive twin, and it says so."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import attrs

from fastsnn_core.plugins import LookupFailure

log = logging.getLogger("fastsnn")
OPERATORS: dict[str, Operator] = {}
_forced: list[str] = []
_last: dict[str, str] = {}
_why: dict[str, str] = {}


@attrs.define(eq=False)
class Operator:
    """A named operation: `naive` defines it, kernels with the same signature stand behind it.

    `plain` ones are as fast naive; without a kernel nobody is told to install one.
    """

    name: str
    naive: Callable[..., Any]
    plain: bool = False
    _ready: dict[str, tuple[Any, str, Callable[..., Any]]] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        OPERATORS[self.name] = self

    def pick(self, device: str) -> tuple[str, Callable[..., Any]]:
        """``(kernel name, callable)`` for a device type."""
        forced = _forced[-1] if _forced else None
        if forced != "naive":
            for kernel, devices, table in kernels():
                if self.name in table and device in devices and forced in (None, kernel):
                    return kernel, table[self.name]
            if forced:
                raise LookupFailure(f"no kernel set {forced!r} has {self.name!r} on {device}", "")
            if not self.plain:
                _say_once(self.name, device)
        return "naive", self.naive

    def __call__(self, device: str, *args: Any) -> Any:
        """Run on `device` with the chosen implementation; one that returns NotImplemented leaves it to the naive."""
        found = self._ready.get(device)
        if found is None or _forced or found[0] is not kernels():
            found = kernels(), *self.pick(device)
            if not _forced:
                self._ready[device] = found
        _, _last[self.name], function = found
        _why.pop(self.name, None)
        out = function(*args)
        if out is NotImplemented:
            _last[self.name], out = "naive", self.naive(*args)
        return out


@cache
def kernels() -> list[tuple[str, tuple[str, ...], dict[str, Callable[..., Any]]]]:
    """Usable kernel sets of the installed plugins, best first: ``(name, devices, {operator: callable})``."""
    from fastsnn_core.plugins import classes

    found = []
    for _, cls in classes("kernel"):
        kernel: Any = cls()
        if reason := kernel.why_not():
            log.info("kernel set %s is not used: %s", kernel.name, reason)
            continue
        found.append((kernel.priority, kernel.name, kernel.devices, kernel.operators()))
    return [row[1:] for row in sorted(found, key=lambda row: (-row[0], row[1]))]


@cache
def _say_once(name: str, device: str) -> None:
    log.warning(
        "%s: no compiled kernel for %s; the naive (slow) one is used. pip install fastsnn-kernel-numba", name, device
    )


def registered() -> dict[str, Operator]:
    """Every operator of core and of the installed libraries (entry points ``fastsnn1.operators``), by name."""
    for point in importlib.metadata.entry_points(group="fastsnn1.operators"):
        point.load()
    return OPERATORS


@contextlib.contextmanager
def use(kernel: str) -> Iterator[None]:
    """Force one implementation by name (``"naive"``, ``"numba"``, …) inside the block."""
    _forced.append(kernel)
    try:
        yield
    finally:
        _forced.pop()


def took(operator: str, path: str, why: str = "") -> None:
    """For kernels that choose by the data: say which way the call in progress went (``"numba: events"``), and why."""
    _last[operator], _why[operator] = path, why


def paths() -> dict[str, str]:
    """The implementation each operator took last."""
    return dict(_last)


def reasons() -> dict[str, str]:
    """Why each operator took its last path, where its kernel chose by the data and said so."""
    return dict(_why)
