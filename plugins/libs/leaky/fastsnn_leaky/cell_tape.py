"""`record_step`: what a cell's step computes, written down once as a list of row operations.

A `TracedRow` stands for a row ``[B,D]`` of the step: arithmetic, comparisons, `torch.where` and what else is listed
here append a row to a `Tape`. Real tensors that meet one (weights, constants) become operands ``[D]`` of the program,
whose gradients autograd takes on from there. `cell_adjoint.programs_of` makes of a tape what the scan runs. Anything
else raises `NotTraceable`, and the cell is run as the loop that it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError

Entry = tuple[Any, ...]


class NotTraceable(FastSNNError):
    """A step does something that has no row operation; the message says what."""


class Tape:
    """The rows of a step in order; equal rows stand once."""

    def __init__(self, double: bool = False) -> None:
        self.double = double
        self.entries: list[Entry] = []
        self.place: dict[Entry, int] = {}
        self.operands: list[Tensor] = []  # real tensors, [D] or one number
        self.inputs = 0

    def add(self, *entry: Any) -> int:
        """The number of a row."""
        if entry not in self.place:
            self.place[entry] = len(self.entries)
            self.entries.append(entry)
        return self.place[entry]

    def input(self) -> int:
        """The next input."""
        self.inputs += 1
        return self.add("in", self.inputs - 1)

    def constant(self, value: float) -> int:
        """A number."""
        return self.add("const", float(value))

    def apply(self, name: str, *of: int) -> int:
        """One of `CODES` on rows; `shift` takes a number of channels."""
        return self.add(name, *of)


class TracedRow:
    """A row ``[B,D]`` of a step that is being written down."""

    def __init__(self, tape: Tape, row: int, like: Tensor) -> None:
        self.tape, self.row, self.like = tape, row, like

    def __bool__(self) -> bool:
        raise NotTraceable("a step asks for the value of a row")

    def __getattr__(self, name: str) -> Any:
        raise NotTraceable(f"a step takes .{name} of a row")

    @property
    def shape(self) -> torch.Size:
        """``[B,D]``."""
        return self.like.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the input."""
        return self.like.dtype

    def new(self, name: str, *others: Any) -> TracedRow:
        """The row that an operation on this one and on others gives."""
        return TracedRow(self.tape, self.tape.apply(name, self.row, *(self.number(o) for o in others)), self.like)

    def number(self, value: Any) -> int:
        """The row of a number, of a real tensor or of another traced row."""
        if isinstance(value, TracedRow):
            return value.row
        if isinstance(value, Tensor):
            return self.operand(value)
        if isinstance(value, bool | int | float):
            return self.tape.constant(value)
        raise NotTraceable(f"a step puts a {type(value).__name__} beside a row")

    def operand(self, value: Tensor) -> int:
        """The row of a real tensor: one number, or one for each channel."""
        held = self.tape.operands
        for i, known in enumerate(held):
            if known is value:
                return self.tape.add("param", i)
        wide = self.like.shape[1]
        if value.dtype != self.dtype or not (value.numel() == 1 or value.shape in ((wide,), (1, wide))):
            raise NotTraceable(f"a step puts a tensor {list(value.shape)} of {value.dtype} beside a row")
        held.append(value)
        return self.tape.add("param", len(held) - 1)

    def reversed_new(self, name: str, other: Any) -> TracedRow:
        """The same with the other operand first."""
        return TracedRow(self.tape, self.tape.apply(name, self.number(other), self.row), self.like)

    def __add__(self, other: Any) -> TracedRow:
        return self.new("add", other)

    def __sub__(self, other: Any) -> TracedRow:
        return self.new("sub", other)

    def __rsub__(self, other: Any) -> TracedRow:
        return self.reversed_new("sub", other)

    def __mul__(self, other: Any) -> TracedRow:
        return self.new("mul", other)

    def __truediv__(self, other: Any) -> TracedRow:
        return self.new("div", other)

    def __rtruediv__(self, other: Any) -> TracedRow:
        return self.reversed_new("div", other)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> TracedRow:
        return self.new("neg")

    def __abs__(self) -> TracedRow:
        return self.new("abs")

    def __pow__(self, power: Any) -> TracedRow:
        if power != 2:
            raise NotTraceable(f"a step takes a row to the power {power}")
        return self * self

    def __lt__(self, other: Any) -> TracedRow:
        return self.new("lt", other)

    def __le__(self, other: Any) -> TracedRow:
        return self.new("le", other)

    def __gt__(self, other: Any) -> TracedRow:
        return self.reversed_new("lt", other)

    def __ge__(self, other: Any) -> TracedRow:
        return self.reversed_new("le", other)

    def abs(self) -> TracedRow:
        """Magnitude."""
        return self.new("abs")

    def exp(self) -> TracedRow:
        """e^row, as `cell_program` defines it."""
        return self.new("exp")

    def sigmoid(self) -> TracedRow:
        """1 / (1 + e^-row)."""
        return 1 / (1 + (-self).exp())

    def square(self) -> TracedRow:
        """The row times itself."""
        return self * self

    def clamp_min(self, low: float) -> TracedRow:
        """At least `low`; NaN stays."""
        return self.new("max", low)

    def clamp_max(self, high: float) -> TracedRow:
        """At most `high`; NaN stays."""
        return self.new("min", high)

    def clamp(self, low: float, high: float) -> TracedRow:
        """Between both; NaN stays."""
        return self.clamp_min(low).clamp_max(high)

    def detach(self) -> TracedRow:
        """The same without a gradient."""
        return self.new("stop")

    def to(self, dtype: torch.dtype) -> TracedRow:
        """The same: all rows have one type, and a comparison is 0 or 1."""
        if dtype != self.dtype:
            raise NotTraceable(f"a step makes a row {dtype}")
        return self

    def sum(self, dim: int, keepdim: bool = False) -> TracedRow:
        """The sum over channels, beside every channel."""
        if dim not in (1, -1) or not keepdim:
            raise NotTraceable("a step sums over something else than channels, or without keepdim")
        return self.new("sum")

    def shifted(self, by: int) -> TracedRow:
        """Channel i is what channel i + by was, 0 beyond the ends."""
        return TracedRow(self.tape, self.tape.apply("shift", self.row, by), self.like)

    def spike(self, slope: Callable[[Any], Any]) -> TracedRow:
        """1[row >= 1]; NaN stays. ``slope(row)`` stands in for the derivative."""
        gradient = slope(self.detach())
        return TracedRow(self.tape, self.tape.apply("step", self.row, self.number(gradient)), self.like)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Functions of torch, and methods of a real tensor beside a row."""
        name = getattr(function, "__name__", str(function))
        known = FUNCTIONS.get(name.strip("_"))
        if known is None or kwargs:
            raise NotTraceable(f"a step calls {name}")
        return known(*args)


def _where_rows(condition: Any, yes: Any, no: Any) -> TracedRow:
    if not isinstance(condition, TracedRow):
        raise NotTraceable("a step chooses by a real tensor")
    tape, row = condition.tape, condition
    return TracedRow(tape, tape.apply("where", row.row, row.number(yes), row.number(no)), row.like)


def _binary_rows(name: str, swapped: bool = False) -> Callable[[Any, Any], TracedRow]:
    def apply(a: Any, b: Any) -> TracedRow:
        a, b = (b, a) if swapped else (a, b)
        row = a if isinstance(a, TracedRow) else b
        return TracedRow(row.tape, row.tape.apply(name, row.number(a), row.number(b)), row.like)

    return apply


def _constant_row(value: float) -> Callable[..., TracedRow]:
    return lambda row: TracedRow(row.tape, row.tape.constant(value), row.like)


FUNCTIONS: dict[str, Callable[..., TracedRow]] = {
    "where": _where_rows,
    "zeros_like": _constant_row(0.0),
    "ones_like": _constant_row(1.0),
    "full_like": lambda row, value: TracedRow(row.tape, row.tape.constant(value), row.like),
    "exp": lambda row: row.exp(),
    "abs": lambda row: row.abs(),
    "sigmoid": lambda row: row.sigmoid(),
    **{name: _binary_rows(name) for name in ("add", "sub", "mul", "div", "lt", "le")},
    "radd": _binary_rows("add"), "rmul": _binary_rows("mul"), "rsub": _binary_rows("sub", True),
    "truediv": _binary_rows("div"), "true_divide": _binary_rows("div"), "rtruediv": _binary_rows("div", True),
    "rdiv": _binary_rows("div", True), "gt": _binary_rows("lt", True), "ge": _binary_rows("le", True),
}  # fmt: skip


def record_step(step: Callable[..., Any], x: Tensor, states: int) -> tuple[Tape, tuple[int, ...], tuple[int, ...]]:
    """The tape of ``step(x, row) -> (*outs, new row)``, its outs and its new states; `x` ``[B,D]`` gives the sizes.

    Raises `NotTraceable`.
    """
    tape = Tape(x.dtype == torch.float64)
    rows = [TracedRow(tape, tape.input(), x) for _ in range(1 + states)]
    try:
        *outs, new = step(rows[0], tuple(rows[1:]))
        return tape, tuple(rows[0].number(o) for o in outs), tuple(rows[0].number(s) for s in new)
    except (TypeError, AttributeError) as error:
        raise NotTraceable(f"a step cannot be written down: {error}") from error
