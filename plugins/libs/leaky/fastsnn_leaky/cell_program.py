"""A cell's step as a program over registers, each a row of channels: what `cell_scan` and its kernels run.

    add, sub, mul, div, copy     as IEEE 754 says, rounded once
    muladd       a · b + c, rounded twice
    lt, le       1 or 0
    where        b where a ≠ 0, else c
    pow2         2^a of an integer a
    sum, shift   over the channels of a row, in order and in double; channel i + k at i, 0 beyond the ends

These are few, because each is a loop that a kernel compiles. `ProgramRows` makes of them what else a step has:
negative, magnitude, maximum and minimum (a where it is NaN), step (1[a >= 1], NaN stays NaN).

e^x is a polynomial of these (`ProgramRows.exponential`): x = n ln 2 + r, Taylor's series of e^r, times 2^n; x clamped
to where it is a normal number; within 2 units in the last place. So a kernel and the twin in torch give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import attrs
import numpy as np

from fastsnn_modules.operands import OperandError

NAMES = ("add", "sub", "mul", "div", "copy", "muladd", "lt", "le", "where", "pow2", "sum", "shift")
CODES = {name: code for code, name in enumerate(NAMES)}
ACROSS = (CODES["sum"], CODES["shift"])  # these need whole rows
LOG2E = 1.4426950408889634
LN2 = {False: (0.693359375, -2.12194440054690581e-4), True: (0.693147180369123816490, 1.90821492927058770002e-10)}
NORMAL = {False: (-87.0, 88.0), True: (-708.0, 709.0)}
TO_WHOLE = {False: 1.5 * 2.0**23, True: 1.5 * 2.0**52}  # adding and taking it rounds half to even
MOST = 4096  # registers of a program
TERMS = {False: 7, True: 13}  # |r| <= ln2 / 2: the next term is below half a unit in the last place


@attrs.frozen
class Program:
    """Instructions ``(code, to, a, b, c)`` on registers: `inputs` first, then `constants`, then temporaries.

    `outs` are the registers of the results; none of them is an input's.
    """

    code: tuple[tuple[int, ...], ...]
    constants: tuple[float, ...]
    inputs: int
    registers: int
    outs: tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        """Kernels write and read where a program says, so nothing else than this is one; `OperandError`."""
        numbers = (self.inputs, self.registers, *self.outs, *(n for row in self.code for n in row))
        if any(type(n) is not int for n in numbers) or any(type(v) is not float for v in self.constants):
            raise OperandError("a program holds whole numbers, and floats as its constants")
        given = self.inputs + len(self.constants)
        if self.inputs < 1 or not given <= self.registers <= MOST:
            raise OperandError(f"a program has 1 input or more and {given} to {MOST} registers, not {self.registers}")
        known = set(range(given))
        for row in self.code:
            code, to, *of = row if len(row) == 5 else (-1, 0, 0, 0, 0)
            if not 0 <= code < len(NAMES) or not given <= to < self.registers:
                raise OperandError(f"{row} is no instruction (code, to, a, b, c) on {self.registers} registers")
            if code == CODES["shift"]:
                of = of[:1] if abs(of[1]) < 2**31 else [-1]
            if not known.issuperset(of) or to in of:
                raise OperandError(f"{row} reads a register that nothing was written to, or its own")
            known.add(to)
        if not known.issuperset(self.outs) or any(out < self.inputs for out in self.outs):
            raise OperandError(f"results {self.outs}: each is a register that was written, and no input's")

    @cached_property
    def packed(self) -> Any:
        """Instructions as one array of int64."""
        return np.asarray(self.code, np.int64).reshape(-1)

    @cached_property
    def places(self) -> Any:
        """Registers of the results as an array."""
        return np.asarray(self.outs, np.int64)

    @cached_property
    def across(self) -> bool:
        """Does a channel see others?"""
        return any(row[0] in ACROSS for row in self.code)


class ProgramRows:
    """Operations on the rows of a program that is being made; equal rows stand once."""

    def __init__(self, double: bool) -> None:
        self.double = double
        self.rows: list[tuple[Any, ...]] = []
        self.place: dict[tuple[Any, ...], int] = {}

    def __call__(self, *row: Any) -> int:
        """The number of a row: ``(name, *rows)``."""
        if row not in self.place:
            self.place[row] = len(self.rows)
            self.rows.append(row)
        return self.place[row]

    def const(self, value: float) -> int:
        """A number."""
        return self("const", value)

    def maximum(self, a: int, b: int) -> int:
        """The larger of both; a where it is NaN."""
        return self("where", self("lt", a, b), b, a)

    def minimum(self, a: int, b: int) -> int:
        """The smaller of both; a where it is NaN."""
        return self("where", self("lt", b, a), b, a)

    def negative(self, a: int) -> int:
        """-a."""
        return self("mul", a, self.const(-1.0))

    def magnitude(self, a: int) -> int:
        """|a|."""
        return self("where", self("lt", a, self.const(0.0)), self.negative(a), a)

    def heaviside(self, a: int) -> int:
        """1[a >= 1]; NaN stays NaN."""
        one = self.const(1.0)
        return self("where", self("le", one, a), one, self("where", self("lt", a, one), self.const(0.0), a))

    def exponential(self, x: int) -> int:
        """e^x."""
        (low, high), (ln2_high, ln2_low), whole = (
            NORMAL[self.double],
            LN2[self.double],
            self.const(TO_WHOLE[self.double]),
        )
        x = self.minimum(self.maximum(x, self.const(low)), self.const(high))
        n = self("sub", self("muladd", x, self.const(LOG2E), whole), whole)
        r = self("sub", self("sub", x, self("mul", n, self.const(ln2_high))), self("mul", n, self.const(ln2_low)))
        p = self.const(1 / math.factorial(TERMS[self.double]))
        for i in range(TERMS[self.double] - 1, -1, -1):
            p = self("muladd", p, r, self.const(1 / math.factorial(i)))
        return self("mul", p, self("pow2", n))


WRITTEN_OUT: dict[str, Callable[..., int]] = {
    "max": ProgramRows.maximum, "min": ProgramRows.minimum, "neg": ProgramRows.negative, "abs": ProgramRows.magnitude,
    "exp": ProgramRows.exponential,
}  # fmt: skip


def lowered_program(
    entries: Sequence[tuple[Any, ...]], given: Sequence[int], outs: Sequence[int], double: bool
) -> Program:
    """The program that computes rows `outs` of a tape from rows `given`; what nobody needs is left out."""
    rows = ProgramRows(double)
    at: dict[int, int] = {}
    for i, (name, *of) in enumerate(entries):
        if name in ("in", "param"):
            at[i] = rows("given", given.index(i)) if i in given else -1
        elif name == "const":
            at[i] = rows(name, *of)
        elif name == "stop":
            at[i] = at[of[0]]
        elif name == "step":
            at[i] = rows.heaviside(at[of[0]])
        elif name == "shift":
            at[i] = rows(name, at[of[0]], of[1])
        elif name in WRITTEN_OUT:
            at[i] = WRITTEN_OUT[name](rows, *(at[o] for o in of))
        else:
            at[i] = rows(name, *(at[o] for o in of))
    ends: list[int] = []
    for row in (at[i] for i in outs):  # every result in a register that is nobody else's
        if rows.rows[row][0] in ("given", "const") or row in ends:
            rows.rows.append(("copy", row))
            row = len(rows.rows) - 1
        ends.append(row)
    return _allocated(rows.rows, len(given), ends)


def _allocated(rows: list[tuple[Any, ...]], inputs: int, ends: list[int]) -> Program:
    """ProgramRows that somebody needs, in registers that are used again when nobody needs what is in them."""
    needed, last = set(ends), dict[int, int]()
    for i in reversed(range(len(rows))):
        if i in needed:
            for o in _sources(rows[i]):
                needed.add(o)
                last.setdefault(o, i)
    constants = [i for i in sorted(needed) if rows[i][0] == "const"]
    register = {i: inputs + n for n, i in enumerate(constants)}
    free: list[int] = []
    top, code = inputs + len(constants), []
    for i in sorted(needed):
        name, *of = rows[i]
        if name == "given":
            register[i] = of[0]
        if name in ("given", "const"):
            continue
        if free:
            register[i] = free.pop()
        else:
            register[i], top = top, top + 1
        sources = _sources(rows[i])
        numbers = [register[o] for o in sources] + ([of[1]] if name == "shift" else [])
        code.append((CODES[name], register[i], *numbers, *[0] * (3 - len(numbers))))
        for o in dict.fromkeys(sources):
            if last[o] == i and o not in ends and rows[o][0] not in ("given", "const"):
                free.append(register[o])
    held = tuple(rows[i][1] for i in constants)
    return Program(tuple(code), held, inputs, top, tuple(register[i] for i in ends))


def _sources(row: tuple[Any, ...]) -> tuple[int, ...]:
    name, *of = row
    return () if name in ("given", "const") else tuple(of[:1] if name == "shift" else of)
