"""Operators on operands that have been looked at already: those that a model makes of its own, checked, plan."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from fastsnn_core.ops.dispatch import Operator, record_path

_known: ContextVar[bool] = ContextVar("fastsnn_known_operands", default=False)


@contextlib.contextmanager
def known_operands(known: bool = True) -> Iterator[None]:
    """Inside, operands are not looked at: whoever calls has made them of a plan that `plan_check.check_plan` has seen.

    That look costs more than the kernels where rows are few: a third of a prompt of 22 tokens.
    """
    before = _known.set(known)
    try:
        yield
    finally:
        _known.reset(before)


def run_operator(operator: Operator, device: str, *args: Any) -> Any:
    """`operator` on operands that it checks, unless they are known."""
    if not _known.get():
        return operator(device, *args)
    kernel, function = operator.pick(device)
    record_path(operator.name, kernel)
    out = function(*args)
    return operator.naive(*args) if out is NotImplemented else out
