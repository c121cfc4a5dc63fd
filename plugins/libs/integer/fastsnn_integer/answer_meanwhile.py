"""Answers while kernels compile: operators whose kernel is not there yet run in torch or NumPy, with the same bits.

A kernel says so by an attribute ``ready``: a function that is False while it is being compiled elsewhere, in which case
nobody has to wait for it. Kernels without one are compiled when they are called. Where a part of a kernel is there
earlier, an attribute ``meanwhile`` is that part: it returns NotImplemented for operands that it is not for.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastsnn_core.ops.dispatch import OPERATORS, kernels, substitute
from fastsnn_events.exact_floats import count_linear_in_floats
from fastsnn_integer import in_numpy

TURN = 5e-4
"""Seconds after which a thread that works in the background hands Python's lock on, where somebody waits for it. As
long as one of 5 ms, Python's own, keeps whoever answers waiting, so often it lets go of the lock."""

_background: list[float] = []  # what Python's own was, for each thread in the background
_entering = threading.Lock()

QUICKER: dict[str, Callable[..., Any]] = {
    "count_linear": count_linear_in_floats,
    "exact_attend": in_numpy.attend_in_numpy,
    "exact_norm": in_numpy.norm_in_numpy,
    "exact_row_sum": in_numpy.row_sum_in_numpy,
    "exact_unary": in_numpy.unary_in_numpy,
}
"""What stands in for a naive twin that is slow for its being a definition."""


def being_compiled(device: str = "cpu") -> list[str]:
    """Operators whose kernels for `device` are being compiled elsewhere; asking begins it."""
    offered = [table for _, devices, table in kernels() if device in devices]
    names = {name for table in offered for name, kernel in table.items() if hasattr(kernel, "ready")}
    chosen = {name: OPERATORS[name].pick(device)[1] for name in sorted(names & OPERATORS.keys())}
    return [name for name, kernel in chosen.items() if hasattr(kernel, "ready") and not kernel.ready()]


def stand_in(name: str, device: str) -> Callable[..., Any]:
    """What answers for an operator: the part of its kernel that is there, where it can, else plain torch."""
    plain = QUICKER.get(name, OPERATORS[name].naive)
    part = getattr(OPERATORS[name].pick(device)[1], "meanwhile", None)
    if part is None:
        return plain

    def answer(*args: Any) -> Any:
        out = part(*args)
        return plain(*args) if out is NotImplemented else out

    return answer


@contextlib.contextmanager
def answer_meanwhile(device: str = "cpu") -> Iterator[None]:
    """Inside, nothing waits for a kernel that is being compiled; its operator's naive twin answers, bit for bit.

    Torch uses one thread less, whose core the compiling process has: two threads that wait for each other at every
    operation take many times as long where a third has one of their cores.
    """
    table = {name: stand_in(name, device) for name in being_compiled(device)}
    if not table:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        with substitute(table):
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def in_background() -> Iterator[None]:
    """Inside, a thread gives way to those who answer every `TURN`."""
    with _entering:
        _background.append(sys.getswitchinterval())
        sys.setswitchinterval(min(TURN, _background[0]))
    try:
        yield
    finally:
        with _entering:
            before = _background.pop(0)
            if _background:
                _background[0] = before
            else:
                sys.setswitchinterval(before)
