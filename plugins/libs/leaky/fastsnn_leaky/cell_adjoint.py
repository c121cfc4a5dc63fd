"""What a scan runs of a recorded step: the step, the step of the state alone, and the step backwards.

The last is found by reverse accumulation over the rows of the tape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from fastsnn_leaky.cell_program import lowered_program
from fastsnn_leaky.cell_tape import Entry, Tape


class Programs:
    """What a scan runs: the step, the step of the state alone, the step backwards; and its real operands."""

    def __init__(self, entries: Sequence[Entry], outs: Sequence[int], new: Sequence[int], double: bool) -> None:
        operands = sum(entry[0] == "param" for entry in entries)
        inputs = [i for i, entry in enumerate(entries) if entry[0] == "in"]
        given = [*inputs, *(entries.index(("param", i)) for i in range(operands))]
        self.states = len(new)
        self.forward = lowered_program(entries, given, [*outs, *new], double)
        self.advance = lowered_program(entries, given, list(new), double)
        tape = Tape(double)
        tape.inputs = len(inputs)
        for entry in entries:
            tape.add(*entry)
        seeds = [tape.input() for _ in (*outs, *new)]
        found = _adjoint(tape, list(entries), dict(_summed(tape, zip((*outs, *new), seeds))))
        zero = tape.constant(0.0)
        self.backward = lowered_program(tape.entries, [*given, *seeds], [found.get(i, zero) for i in given], double)


def _summed(tape: Tape, pairs: Any) -> dict[int, int]:
    total: dict[int, int] = {}
    for row, gradient in pairs:
        total[row] = tape.apply("add", total[row], gradient) if row in total else gradient
    return total


def _adjoint(tape: Tape, entries: list[Entry], found: dict[int, int]) -> dict[int, int]:
    """Gradients of all rows from those of some, appended to the tape: reverse accumulation."""
    apply, constant = tape.apply, tape.constant

    def give(row: int, gradient: int) -> None:
        if entries[row][0] != "const":
            found[row] = apply("add", found[row], gradient) if row in found else gradient

    for row in reversed(range(len(entries))):
        if row not in found:
            continue
        g, (name, *of) = found[row], entries[row]
        if name in ("add", "sub"):
            give(of[0], g)
            give(of[1], g if name == "add" else apply("neg", g))
        elif name == "mul":
            give(of[0], apply("mul", g, of[1]))
            give(of[1], apply("mul", g, of[0]))
        elif name == "div":
            give(of[0], apply("div", g, of[1]))
            give(of[1], apply("neg", apply("div", apply("mul", g, row), of[1])))
        elif name == "neg":
            give(of[0], apply("neg", g))
        elif name == "abs":
            zero = constant(0.0)
            signed = apply("where", apply("lt", of[0], zero), apply("neg", g), zero)
            give(of[0], apply("where", apply("lt", zero, of[0]), g, signed))
        elif name == "exp":
            give(of[0], apply("mul", g, row))
        elif name in ("max", "min"):
            inside = apply("le", *(of if name == "min" else of[::-1]))
            give(of[0], apply("where", inside, g, constant(0.0)))
            give(of[1], apply("where", inside, constant(0.0), g))
        elif name == "where":
            give(of[1], apply("where", of[0], g, constant(0.0)))
            give(of[2], apply("where", of[0], constant(0.0), g))
        elif name == "step":
            give(of[0], apply("mul", g, of[1]))
        elif name == "sum":
            give(of[0], apply("sum", g))
        elif name == "shift":
            give(of[0], apply("shift", g, -of[1]))
    return found


@lru_cache(maxsize=512)
def programs_of(entries: tuple[Entry, ...], outs: tuple[int, ...], new: tuple[int, ...], double: bool) -> Programs:
    """The programs of a tape; those of equal tapes are made once."""
    return Programs(entries, outs, new, double)
