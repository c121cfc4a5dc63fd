"""Which implementation an operator takes: the best kernel for the device, else its naive twin, and it says so.

Choices (`use`, `substitute`) and the record of what ran (`paths`, `reasons`) belong to the context that made them, as a
`contextvars.Context` does: threads and tasks do not see each other's.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

import attrs

from fastsnn_core.plugins import LookupFailure

log = logging.getLogger("fastsnn")
OPERATORS: dict[str, Operator] = {}


class Forced:
    """What `use` and `substitute` ask for in this context: the blocks that are open, the latest last."""

    def __init__(self) -> None:
        self.blocks: ContextVar[tuple[Override, ...]] = ContextVar("fastsnn_forced", default=())
        self.open = self.blocks.get

    @contextlib.contextmanager
    def opened(self, block: Override) -> Iterator[None]:
        """`block` counts until its own end, in whatever order several end."""
        self.blocks.set((*self.blocks.get(), block))
        try:
            yield
        finally:
            self.blocks.set(tuple(b for b in self.blocks.get() if b is not block))

    def names(self) -> list[str]:
        """Kernels asked for by name."""
        return [b.kernel for b in self.blocks.get() if b.kernel]

    def __repr__(self) -> str:
        return repr(self.names())


@attrs.frozen(eq=False)
class Override:
    """One open `use` (a kernel's name) or `substitute` (implementations by operator)."""

    kernel: str = ""
    table: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)


_forced = Forced()
_took: dict[str, ContextVar[tuple[str, str] | None]] = {}


def _call_directly(implementation: Callable[..., Any], *sample: Any) -> Any:
    return implementation(*sample)


@attrs.define(eq=False)
class Operator:
    """A named operation: `naive` defines it, kernels with the same signature stand behind it.

    `plain`: do not warn when only the naive implementation is available (it is as fast). `samples()` yields argument
    tuples on which the conformance kit compares a kernel with `naive`, bit for bit; where an implementation is not
    simply called with them, ``run(implementation, *sample)`` says how.
    `check` looks at the operands before any implementation does (`fastsnn_modules.operands`): a kernel may then trust
    shapes, types, devices and ranges.
    """

    name: str
    naive: Callable[..., Any]
    plain: bool = False
    check: Callable[..., Any] | None = None
    samples: Callable[[], Any] = attrs.field(default=list, repr=False)
    run: Callable[..., Any] = attrs.field(default=_call_directly, repr=False)
    _ready: dict[str, tuple[Any, str, Callable[..., Any]]] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        OPERATORS[self.name] = self

    def pick(self, device: str) -> tuple[str, Callable[..., Any]]:
        """``(kernel name, callable)`` for a device type."""
        blocks = _forced.open()
        for block in reversed(blocks):
            if self.name in block.table:
                return "naive", block.table[self.name]
        forced = next((b.kernel for b in reversed(blocks) if b.kernel), None)
        if forced != "naive":
            for kernel, devices, table in kernels():
                if self.name in table and device in devices and forced in (None, kernel):
                    return kernel, getattr(table[self.name], "unchecked", table[self.name])
            if forced:
                raise LookupFailure(f"no kernel set {forced!r} has {self.name!r} on {device}", "")
            if not self.plain:
                _say_once(self.name, device)
        return "naive", self.naive

    def __call__(self, device: str, *args: Any) -> Any:
        """Run on `device` with the chosen implementation; one that returns NotImplemented leaves it to the naive."""
        if self.check is not None:
            self.check(*args)
        found = self._ready.get(device)
        if found is None or _forced.open() or found[0] is not kernels():
            found = kernels(), *self.pick(device)
            if not _forced.open():
                self._ready[device] = found
        _, kernel, function = found
        record_path(self.name, kernel)
        out = function(*args)
        if out is NotImplemented:
            record_path(self.name, "naive")
            out = self.naive(*args)
        return out

    @property
    def path(self) -> str:
        """The implementation that the latest call in this context took; "" before any."""
        return path_of(self.name)


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


def use(kernel: str) -> contextlib.AbstractContextManager[None]:
    """Force one implementation by name (``"naive"``, ``"numba"``, …) inside the block, in this thread or task only."""
    return _forced.opened(Override(kernel))


def substitute(table: Mapping[str, Callable[..., Any]]) -> contextlib.AbstractContextManager[None]:
    """Run other callables in the place of some operators inside the block, in this thread or task only."""
    return _forced.opened(Override(table=table))


def record_path(operator: str, path: str, why: str = "") -> None:
    """Say which way the call in progress went (``"numba: events"``), and why: for kernels that choose by the data."""
    try:
        _took[operator].set((path, why))
    except KeyError:
        _took.setdefault(operator, ContextVar(f"fastsnn_took_{operator}", default=None)).set((path, why))


def path_of(operator: str) -> str:
    """The implementation that the latest call of an operator in this context took; "" before any."""
    found = _took[operator].get() if operator in _took else None
    return found[0] if found else ""


def paths() -> dict[str, str]:
    """The implementation each operator took last, in this thread or task."""
    return {name: found[0] for name, var in list(_took.items()) if (found := var.get())}


def reasons() -> dict[str, str]:
    """Why each operator took its last path, where its kernel chose by the data and said so."""
    return {name: found[1] for name, var in list(_took.items()) if (found := var.get()) and found[1]}
