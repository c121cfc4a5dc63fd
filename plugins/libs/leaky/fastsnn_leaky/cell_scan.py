"""`cell_scan`: a neuron cell's step over tokens, one operator with its backward; the step is a `Program`.

For each stream b and token t, with S states, P operands (constants and weights, ``[P,D]``) and O results:

    r_{t-1} = keep_t · r_{t-1}        (o_t, r_t) = step(x_t, r_{t-1}, operands)

Backward, from the last token to the first, with the adjoint of the step as a program (`cell_adjoint.Programs`):

    (∂x_t, λ_{t-1}, ∂p) = adjoint(x_t, r_{t-1}, operands, ∂o_t, λ_t)      λ_{t-1} = keep_t · λ_{t-1}

The forward keeps the states at every `CHECKPOINT` tokens, the backward recomputes what is between. Shapes: x
``[B,T,D]``, states ``[S,B,D]``, results ``[O,B,T,D]``, marks ``[S,B,M,D]``; gradients of the operands come for each
stream ``[B,P,D]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastsnn_core.ops.dispatch import Operator
from fastsnn_leaky.cell_adjoint import Programs
from fastsnn_leaky.cell_program import NAMES, Program
from fastsnn_leaky.scan import CHECKPOINT
from fastsnn_modules.operands import OperandError, Operands, imported_later


def _power_of_two_rows(n: Tensor) -> Tensor:
    """2^n of whole numbers, from the bits of a float."""
    if n.dtype == torch.float64:
        return ((n.long() + 1023) << 52).view(torch.float64)
    return ((n.int() + 127) << 23).view(torch.float32).to(n.dtype)


def _shifted_rows(a: Tensor, by: int) -> Tensor:
    out = torch.zeros_like(a)
    wide = a.shape[1]
    if abs(by) < wide:
        out[:, max(0, -by) : wide - max(0, by)] = a[:, max(0, by) : wide - max(0, -by)]
    return out


def _channel_sum(a: Tensor) -> Tensor:
    total = a.double().cumsum(1)[:, -1:] if a.shape[1] else a.double()
    return total.to(a.dtype).expand_as(a)


ROWS: dict[str, Callable[..., Tensor]] = {
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: a - b,
    "mul": lambda a, b, c: a * b,
    "div": lambda a, b, c: a / b,
    "copy": lambda a, b, c: a,
    "muladd": lambda a, b, c: a * b + c,
    "lt": lambda a, b, c: (a < b).to(a.dtype),
    "le": lambda a, b, c: (a <= b).to(a.dtype),
    "where": lambda a, b, c: torch.where(a != 0, b, c),
    "pow2": lambda a, b, c: _power_of_two_rows(a),
    "sum": lambda a, b, c: _channel_sum(a),
}


def run_program(program: Program, inputs: list[Tensor]) -> list[Tensor]:
    """The results of a program on rows ``[B,D]``, by torch."""
    like = inputs[0]
    held = [torch.full_like(like, value) for value in program.constants]
    registers = [*inputs, *held, *[like] * (program.registers - len(inputs) - len(held))]
    for code, to, a, b, c in program.code:
        if NAMES[code] == "shift":
            registers[to] = _shifted_rows(registers[a], b)
        else:
            registers[to] = ROWS[NAMES[code]](registers[a], registers[b], registers[c])
    return [registers[i] for i in program.outs]


def _kept(keep: Tensor, t: int, rows: list[Tensor]) -> list[Tensor]:
    return rows if not len(keep) else [torch.where(keep[:, t, None], r, torch.zeros_like(r)) for r in rows]


def forward_cell_naive(
    x: Tensor, states: Tensor, operands: Tensor, keep: Tensor, program: Program
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, a loop over T: results ``[O,B,T,D]``, last states ``[S,B,D]``, marks ``[S,B,⌈T/128⌉,D]``."""
    count, (batch, steps, wide) = len(states), x.shape
    outs = x.new_empty(len(program.outs) - count, batch, steps, wide)
    marks = x.new_empty(count, batch, -(-steps // CHECKPOINT), wide)
    rows, held = list(states), [p.expand(batch, wide) for p in operands]
    for t in range(steps):
        if t % CHECKPOINT == 0:
            for s, row in enumerate(rows):
                marks[s, :, t // CHECKPOINT] = row
        rows = _kept(keep, t, rows)
        found = run_program(program, [x[:, t], *rows, *held])
        rows = found[len(outs) :]
        for o in range(len(outs)):
            outs[o, :, t] = found[o]
    return outs, torch.stack(rows) if rows else states.clone(), marks


def backward_cell_naive(
    grad: Tensor, carry: Tensor, x: Tensor, marks: Tensor, operands: Tensor, keep: Tensor,
    advance: Program, adjoint: Program,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The definition of the backward: gradients of x, of the first states, and of the operands for each stream."""
    count, (batch, steps, wide) = len(carry), x.shape
    grad_x, grad_p = torch.empty_like(x), x.new_zeros(batch, len(operands), wide)
    held, back = [p.expand(batch, wide) for p in operands], list(carry)
    for piece in reversed(range(marks.shape[2])):
        first, last = piece * CHECKPOINT, min(steps, (piece + 1) * CHECKPOINT)
        rows, before = list(marks[:, :, piece]), []
        for t in range(first, last):
            rows = _kept(keep, t, rows)
            before.append(rows)
            rows = run_program(advance, [x[:, t], *rows, *held])
        for t in reversed(range(first, last)):
            found = run_program(adjoint, [x[:, t], *before[t - first], *held, *grad[:, :, t], *back])
            grad_x[:, t] = found[0]
            back = _kept(keep, t, found[1 : 1 + count])
            for p, g in enumerate(found[1 + count :]):
                grad_p[:, p] = grad_p[:, p] + g
    return grad_x, torch.stack(back) if back else carry.clone(), grad_p


_CELL = Operands(
    "cell_scan", "x [B,T,D] float", "states [S,B,D] as x", "operands [P,D] as x or empty", "keep [B,T] bool or empty"
)
_CELL_BACK = Operands(
    "cell_scan_backward", "x [B,T,D] float", "grad [O,B,T,D] as x", "carry [S,B,D] as x", "marks [S,B,M,D] as x",
    "operands [P,D] as x or empty", "keep [B,T] bool or empty",
)  # fmt: skip


def _check_program(name: str, program: Any, inputs: int, outs: int, exactly: bool = True) -> None:
    if not isinstance(program, Program):
        raise OperandError(f"{name}: a program is a `Program`, got {type(program).__name__}")
    enough = len(program.outs) == outs if exactly else len(program.outs) >= outs
    if program.inputs != inputs or not enough:
        raise OperandError(
            f"{name}: a program of {program.inputs} inputs and {len(program.outs)} results was given; the operands "
            f"make {inputs} and {outs}"
        )


def check_cell_scan(x: Tensor, states: Tensor, operands: Tensor, keep: Tensor, program: Program) -> None:
    """The operands of `forward_cell_naive`."""
    _CELL(x, states, operands, keep)
    _check_program("cell_scan", program, 1 + len(states) + len(operands), len(states), exactly=False)


def check_cell_scan_backward(
    grad: Tensor, carry: Tensor, x: Tensor, marks: Tensor, operands: Tensor, keep: Tensor,
    advance: Program, adjoint: Program,
) -> None:  # fmt: skip
    """The operands of `backward_cell_naive`."""
    sizes = _CELL_BACK(x, grad, carry, marks, operands, keep)
    inputs = 1 + len(carry) + len(operands)
    _check_program("cell_scan_backward", advance, inputs, len(carry))
    _check_program("cell_scan_backward", adjoint, inputs + len(grad) + len(carry), inputs)
    if sizes["M"] != -(-sizes["T"] // CHECKPOINT):
        raise OperandError(
            f"cell_scan_backward: marks holds {sizes['M']} checkpoints; {sizes['T']} tokens have one every {CHECKPOINT}"
        )


CELL_SCAN = Operator(
    "cell_scan", forward_cell_naive, check=check_cell_scan, samples=imported_later("fastsnn_leaky.samples.cell_forward")
)
CELL_SCAN_BACKWARD = Operator(
    "cell_scan_backward", backward_cell_naive, check=check_cell_scan_backward,
    samples=imported_later("fastsnn_leaky.samples.cell_backward"),
)  # fmt: skip


class _CellScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, states: Tensor, operands: Tensor, keep: Tensor, programs: Programs
    ) -> tuple[Tensor, Tensor]:
        outs, last, marks = CELL_SCAN(x.device.type, x, states, operands, keep, programs.forward)
        ctx.save_for_backward(x, marks, operands, keep)
        ctx.programs = programs
        return outs, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, carry: Tensor) -> tuple[Any, ...]:
        x, marks, operands, keep = ctx.saved_tensors
        how = ctx.programs
        grad_x, grad_states, grad_operands = CELL_SCAN_BACKWARD(
            x.device.type, grad.contiguous(), carry.contiguous(), x, marks, operands, keep, how.advance, how.backward
        )
        return grad_x, grad_states, grad_operands.sum(0), None, None


def cell_scan(
    x: Tensor, states: list[Tensor], operands: list[Tensor], reset: Tensor | None, programs: Programs
) -> tuple[Tensor, Tensor]:
    """Results ``[O,B,T,D]`` and last states ``[S,B,D]`` of `x` ``[B,T,D]``, with gradients to all three.

    `reset` ``[B,T]`` marks tokens before which the states are 0. Torch refuses a second derivative (RuntimeError).
    """
    wide = x.shape[2]
    keep = x.new_empty(0, 0, dtype=torch.bool) if reset is None else ~reset
    rows = torch.stack([p.reshape(-1).expand(wide) for p in operands]) if operands else x.new_empty(0, wide)
    found: tuple[Tensor, Tensor] = _CellScan.apply(x.contiguous(), torch.stack(states), rows, keep, programs)
    return found
