"""`cell_scan` and its backward in Numba: a program of row operations, run for every token on a block of channels.

The registers of a block lie in the first-level cache; each instruction is one vectorised loop over its channels, in the
naive twin's order, so results are equal bit for bit. One compiled function serves every cell: what differs is data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from fastsnn_kernel_numba.buffer_pool import empty
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat, workers
from fastsnn_leaky.cell_program import CODES, Program
from fastsnn_leaky.scan import CHECKPOINT
from fastsnn_modules.operands import guarded

U = np.uint64
FULL_TYPES = (torch.float32, torch.float64)
REGISTER_BYTES = 1 << 15  # of all registers of one block
LEAST = 32  # channels of a block, where there are so many
ADD, SUB, MUL, DIV = CODES["add"], CODES["sub"], CODES["mul"], CODES["div"]
COPY, MULADD, LT, LE = CODES["copy"], CODES["muladd"], CODES["lt"], CODES["le"]
WHERE, POW2, SUM, SHIFT = CODES["where"], CODES["pow2"], CODES["sum"], CODES["shift"]


@intrinsic
def _power_of_two(typing: Any, number: Any) -> Any:
    """2^n of a whole number, from the bits of a float."""
    double = number == types.float64
    bits, bias, mantissa = (64, 1023, 52) if double else (32, 127, 23)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = ir.IntType(bits)
        exponent = builder.add(builder.fptosi(args[0], whole), whole(bias))
        return builder.bitcast(builder.shl(exponent, whole(mantissa)), ir.DoubleType() if double else ir.FloatType())

    return number(number), generate


@compile
def _program_rows(code, r, base, width, n, zero, one):  # type: ignore[no-untyped-def]
    """Run the instructions on registers ``r[base + register · width]`` of n channels."""
    for i in range(0, len(code), 5):
        op, to, a = code[i], U(base + code[i + 1] * width), U(base + code[i + 2] * width)
        b, c = U(base + code[i + 3] * width), U(base + code[i + 4] * width)
        if op == ADD:
            for d in range(n):
                r[to + d] = r[a + d] + r[b + d]
        elif op == SUB:
            for d in range(n):
                r[to + d] = r[a + d] - r[b + d]
        elif op == MUL:
            for d in range(n):
                r[to + d] = r[a + d] * r[b + d]
        elif op == DIV:
            for d in range(n):
                r[to + d] = r[a + d] / r[b + d]
        elif op == MULADD:
            for d in range(n):
                r[to + d] = r[a + d] * r[b + d] + r[c + d]
        elif op == WHERE:
            for d in range(n):
                r[to + d] = r[b + d] if r[a + d] != zero else r[c + d]
        elif op == LT:
            for d in range(n):
                r[to + d] = one if r[a + d] < r[b + d] else zero
        elif op == LE:
            for d in range(n):
                r[to + d] = one if r[a + d] <= r[b + d] else zero
        elif op == COPY:
            for d in range(n):
                r[to + d] = r[a + d]
        elif op == POW2:
            for d in range(n):
                r[to + d] = _power_of_two(r[a + d])
        elif op == SUM:
            total = 0.0
            for d in range(n):
                total += r[a + d]
            for d in range(n):
                r[to + d] = total
        elif op == SHIFT:
            by = code[i + 3]
            for d in range(n):
                s = np.int64(d) + by
                r[to + d] = r[a + U(s)] if 0 <= s < np.int64(n) else zero


@compile
def _move(a, oa, b, ob, n):  # type: ignore[no-untyped-def]
    for d in range(n):
        b[ob + d] = a[oa + d]


@compile
def _set_row(a, o, n, value):  # type: ignore[no-untyped-def]
    for d in range(n):
        a[o + d] = value


@compile
def _add_row(a, oa, b, ob, n):  # type: ignore[no-untyped-def]
    for d in range(n):
        b[ob + d] = b[ob + d] + a[oa + d]


@compile
def _begin_registers(r, base, width, first, constants):  # type: ignore[no-untyped-def]
    """Constants in their registers."""
    for i in range(len(constants)):
        _set_row(r, U(base + (first + i) * width), U(width), constants[i])


@Threaded
def _cell_walk(x, states, operands, keep, grad, programs, sizes, outs, last, marks, grad_p, seen, r, nw):  # type: ignore[no-untyped-def]
    """Both ways, so that the instructions are compiled into one function.

    Forward: the first of the two `programs` is the step, `outs` are its results; states begin as `states`, end in
    `last` and leave marks. Backward: the first is the step of the state alone, the second its adjoint; `outs` is the
    gradient of x, `last` the states' gradient on its way.
    """
    first, second = programs
    batch, steps, wide, width, count, held, results, room, every, backward = sizes
    blocks, pieces = (wide + width - 1) // width, (steps + every - 1) // every
    tasks, given = batch * blocks, 1 + count + held
    zero, one = r.dtype.type(0), r.dtype.type(1)
    for w in prange(nw):
        base, store = w * room, w * every * count * width
        for task in range(w * tasks // nw, (w + 1) * tasks // nw):
            b, d0 = task // blocks, task % blocks * width
            n = U(min(width, wide - d0))
            for p in range(held):
                _move(operands, U(p * wide + d0), r, U(base + (1 + count + p) * width), n)
                if backward:
                    _set_row(grad_p, U((b * held + p) * wide + d0), n, zero)
            if not backward:
                for s in range(count):
                    _move(states, U((s * batch + b) * wide + d0), r, U(base + (1 + s) * width), n)
            for q in range(pieces * (1 + backward)):  # backward: twice over each piece, the last piece first
                adjoint = backward and q % 2 == 1
                piece = pieces - 1 - q // 2 if backward else q
                t0, t1 = piece * every, min(steps, (piece + 1) * every)
                code, constants, places = second if adjoint else first
                _begin_registers(r, base, width, given + (results + count if adjoint else 0), constants)
                for s in range(0 if adjoint else count):
                    at, here = U(((s * batch + b) * pieces + piece) * wide + d0), U(base + (1 + s) * width)
                    if backward:
                        _move(marks, at, r, here, n)
                    else:
                        _move(r, here, marks, at, n)
                for i in range(t1 - t0):
                    t = t1 - 1 - i if adjoint else t0 + i
                    fresh = len(keep) > 0 and not keep[b * steps + t]
                    for s in range(count):
                        here, there = U(base + (1 + s) * width), U(store + ((t - t0) * count + s) * width)
                        if adjoint:
                            _move(seen, there, r, here, n)
                            _move(last, U((s * batch + b) * wide + d0), r, U(base + (given + results + s) * width), n)
                        else:
                            if fresh:
                                _set_row(r, here, n, zero)
                            if backward:
                                _move(r, here, seen, there, n)
                    _move(x, U((b * steps + t) * wide + d0), r, U(base), n)
                    if adjoint:
                        for o in range(results):
                            at = U(((o * batch + b) * steps + t) * wide + d0)
                            _move(grad, at, r, U(base + (given + o) * width), n)
                    _program_rows(code, r, base, width, n, zero, one)
                    if adjoint:
                        _move(r, U(base + places[0] * width), outs, U((b * steps + t) * wide + d0), n)
                        for s in range(count):
                            at = U((s * batch + b) * wide + d0)
                            _move(r, U(base + places[1 + s] * width), last, at, n)
                            if fresh:
                                _set_row(last, at, n, zero)
                        for p in range(held):
                            _add_row(
                                r, U(base + places[1 + count + p] * width), grad_p, U((b * held + p) * wide + d0), n
                            )
                    else:
                        kept = 0 if backward else results
                        for o in range(kept):
                            at = U(((o * batch + b) * steps + t) * wide + d0)
                            _move(r, U(base + places[o] * width), outs, at, n)
                        for s in range(count):
                            _move(r, U(base + places[kept + s] * width), r, U(base + (1 + s) * width), n)
            if not backward:
                for s in range(count):
                    _move(r, U(base + (1 + s) * width), last, U((s * batch + b) * wide + d0), n)


def _block(x: Tensor, programs: tuple[Program, ...], nw: int) -> tuple[int, int]:
    """Channels of a block, and the numbers that the registers of one worker take."""
    batch, _, wide = x.shape
    registers = max(program.registers for program in programs)
    if any(program.across for program in programs):
        return wide, registers * wide
    share = -(-wide // -(-nw // max(1, batch)))
    fits = max(LEAST, REGISTER_BYTES // (registers * x.itemsize) // 16 * 16)
    width = max(1, min(wide, fits, -(-share // 16) * 16))
    return width, registers * width


def _nothing_like(x: Tensor) -> Any:
    return np.empty(0, np.float32 if x.dtype == torch.float32 else np.float64)


def _packed(program: Program, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Instructions, constants in the type of x, and where the results are."""
    kind = np.float32 if dtype == torch.float32 else np.float64
    return program.packed, np.asarray(program.constants, kind), program.places


@guarded("cell_scan")
def forward_cells(
    x: Tensor, states: Tensor, operands: Tensor, keep: Tensor, program: Program
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `fastsnn_leaky.cell_scan.forward_cell_naive`."""
    if x.dtype not in FULL_TYPES:
        return NotImplemented
    x, states, operands, keep = (t.contiguous() for t in (x, states, operands, keep))
    (batch, steps, wide), count = x.shape, len(states)
    results = len(program.outs) - count
    outs, last = empty((results, batch, steps, wide), x.dtype), states.clone()
    marks = empty((count, batch, -(-steps // CHECKPOINT), wide), x.dtype)
    if x.numel():
        nw = workers()
        width, room = _block(x, (program,), nw)
        none, how = _nothing_like(x), _packed(program, x.dtype)
        sizes = (batch, steps, wide, width, count, len(operands), results, room, CHECKPOINT, 0)
        given = flat(x), flat(states), flat(operands), flat(keep), none, (how, how)
        r = np.empty(nw * room, none.dtype)
        _cell_walk.on(nw, *given, sizes, flat(outs), flat(last), flat(marks), none, none, r)
    return outs, last, marks


@guarded("cell_scan_backward")
def backward_cells(
    grad: Tensor, carry: Tensor, x: Tensor, marks: Tensor, operands: Tensor, keep: Tensor,
    advance: Program, adjoint: Program,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Twin of `fastsnn_leaky.cell_scan.backward_cell_naive`."""
    if x.dtype not in FULL_TYPES:
        return NotImplemented
    grad, x, marks, operands, keep = (t.contiguous() for t in (grad, x, marks, operands, keep))
    (batch, steps, wide), count, held = x.shape, len(carry), len(operands)
    carry = carry.clone(memory_format=torch.contiguous_format)
    grad_x, grad_p = empty(x.shape, x.dtype), empty((batch, held, wide), x.dtype)
    if x.numel():
        nw = workers()
        width, room = _block(x, (advance, adjoint), nw)
        sizes = (batch, steps, wide, width, count, held, len(grad), room, CHECKPOINT, 1)
        none, programs = _nothing_like(x), (_packed(advance, x.dtype), _packed(adjoint, x.dtype))
        seen, r = (np.empty(nw * numbers, none.dtype) for numbers in (CHECKPOINT * count * width, room))
        given = flat(x), none, flat(operands), flat(keep), flat(grad), programs
        _cell_walk.on(nw, *given, sizes, flat(grad_x), flat(carry), flat(marks), flat(grad_p), seen, r)
    else:
        grad_p.zero_()
    return grad_x, carry, grad_p
