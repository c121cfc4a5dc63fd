"""cell_scan: a step written down once against the same step as a loop, its gradient by autograd; refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastsnn_core.errors import FastSNNError
from fastsnn_core.ops.dispatch import paths, reasons
from fastsnn_leaky import cells
from fastsnn_leaky.cell_adjoint import programs_of
from fastsnn_leaky.cell_program import CODES, Program, lowered_program
from fastsnn_leaky.cell_scan import CELL_SCAN, CELL_SCAN_BACKWARD, run_program
from fastsnn_leaky.cell_tape import NotTraceable, record_step
from fastsnn_leaky.cells import Cell, channels_shifted
from fastsnn_modules.operands import OperandError


class Everything(Cell):
    """A step with every operation that can be written down."""

    parts = ("v", "a")

    def __init__(self, wide: int, across: bool) -> None:
        super().__init__(1.0, None, True)
        self.w, self.g, self.across = nn.Parameter(torch.rand(wide) + 0.5), nn.Parameter(torch.tensor(0.3)), across

    def step(self, x, row):
        v, a = row
        w = self.w.sigmoid().to(x.dtype)
        u = v / 2 + w * x + (1 - w) * abs(x - 0.3).clamp_max(2.0) - self.g.to(x.dtype) / (1 + a.square())
        u = u + 0.1 * (x - v).clamp(-2.0, 1.5).exp() + (2.0 - x) ** 2 * 0.01 + (-x).sigmoid()
        if self.across:
            u = u - 0.1 * (a.sum(1, keepdim=True) - channels_shifted(a, 1) + channels_shifted(a, -2))
        s = self.spike(u)
        fired = s.detach() > 0
        return u, s, (torch.where(fired, torch.full_like(u, 0.25), u), torch.where(x <= 1.0, 0.5 * a + s, 0.4 * a))


def both_ways(cell, x, state, reset):
    """Outputs and gradients of everything, with the scan and with the loop."""
    found = []
    for loop in (False, True):
        cell.zero_grad()
        leaves = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in state)]
        with pytest.MonkeyPatch.context() as patch:
            if loop:
                patch.setattr(cells, "compiled_steps", lambda *a: None)
            u, s, row = cell.walk(leaves[0], tuple(leaves[1:]), reset)
        weight = torch.linspace(-1, 1, u.numel(), dtype=u.dtype).cos().reshape(u.shape)
        ((u + 2 * s) * weight).sum().add(sum((r * r).sum() for r in row)).backward()
        found.append([u, s, *row, *(leaf.grad for leaf in leaves), *(p.grad.clone() for p in cell.parameters())])
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([1, 2, 5, 127, 128, 129, 140]), st.sampled_from([1, 2, 3, 40]),
    st.booleans(), st.booleans(), st.sampled_from(["atan", "triangle"]), st.integers(0, 99),
)  # fmt: skip
def test_a_step_written_down_is_the_step(batch, steps, wide, across, resets, slope, seed):
    torch.manual_seed(seed)
    cell = Everything(wide, across).double()
    if slope == "triangle":
        cell.slope = lambda u, first, last: (1 - ((first - u).clamp_min(0) + (u - last).clamp_min(0))).clamp_min(0)
    x = torch.randn(batch, steps, wide, dtype=torch.float64)
    state = [torch.randn(batch, wide, dtype=torch.float64) for _ in range(2)]
    reset = torch.rand(batch, steps) < 0.2 if resets else None
    scanned, looped = both_ways(cell, x, state, reset)
    assert CELL_SCAN.path != "loop"
    for a, b in zip(scanned, looped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_exponential(kind):
    double = kind == torch.float64
    program = lowered_program([("in", 0), ("exp", 0)], [0], [1], double)
    x = torch.cat([torch.linspace(-80, 80, 4001, dtype=torch.float64), torch.tensor([0.0, -0.0, 1e-30])]).to(kind)
    (found,) = run_program(program, [x[None]])
    error = (found[0].double() / x.double().exp() - 1).abs().max()
    assert float(error) < 2 * torch.finfo(kind).eps
    (ends,) = run_program(program, [torch.tensor([[float("nan"), -1e9, 1e9, float("-inf")]], dtype=kind)])
    assert bool(ends[0, 0].isnan())
    assert bool(torch.isfinite(ends[0, 1:]).all())
    assert float(ends[0, 1]) < 1e-37


def test_registers_are_used_again_and_what_nobody_needs_is_left_out():
    entries = [("in", 0)]
    for i in range(50):
        entries.append(("add", i, i))
    entries.append(("exp", 0))
    program = lowered_program(entries, [0], [50], False)
    assert len(program.code) == 50
    assert program.registers <= 4
    assert {row[0] for row in program.code} == {CODES["add"]}


class Matrix(Cell):
    def __init__(self):
        super().__init__(1.0)
        self.r = nn.Linear(4, 4)

    def step(self, x, row):
        u = 0.5 * row[0] + self.r(x)
        return u, self.spike(u), (u,)


class Branch(Cell):
    def step(self, x, row):
        u = 0.5 * row[0] + x if x[0, 0] > 0 else x
        return u, self.spike(u), (u,)


class Batchwise(Cell):
    def step(self, x, row):
        u = 0.5 * row[0] + x * torch.ones(3, 1)
        return u, self.spike(u), (u,)


@pytest.mark.parametrize(
    ("cell", "why"), [(Matrix(), "linear"), (Branch(1.0), "subscript"), (Batchwise(1.0), "[3, 1]")]
)
def test_other_steps_are_loops_and_say_why(cell, why):
    x = torch.randn(3, 5, 4)
    spikes, (v,) = cell(x)
    assert paths()["cell_scan"] == "loop"
    assert why in reasons()["cell_scan"]
    row = (torch.zeros(3, 4),)
    for t in range(5):
        _, s, row = cell.step(x[:, t], row)
        assert torch.equal(s, spikes.counts[:, t])
    assert torch.equal(v, row[0])


def test_what_does_not_fit_is_refused():
    def step(x, row):
        return x + row[0], (x,)

    x, state = torch.randn(2, 3, 4), torch.zeros(1, 2, 4)
    tape, outs, new = record_step(step, x[:, 0], 1)
    programs = programs_of(tuple(tape.entries), outs, new, False)
    none, keep = torch.empty(0, 4), torch.empty(0, 0, dtype=torch.bool)
    CELL_SCAN("cpu", x, state, none, keep, programs.forward)
    with pytest.raises(FastSNNError, match="make 3"):
        CELL_SCAN("cpu", x, torch.zeros(2, 2, 4), none, keep, programs.forward)
    with pytest.raises(FastSNNError, match="Program"):
        CELL_SCAN("cpu", x, state, none, keep, None)
    with pytest.raises(FastSNNError, match="states"):
        CELL_SCAN("cpu", x, torch.zeros(1, 3, 4), none, keep, programs.forward)
    marks = torch.zeros(1, 2, 4, 4)
    with pytest.raises(FastSNNError, match="checkpoints"):
        CELL_SCAN_BACKWARD("cpu", x[None], state, x, marks, none, keep, programs.advance, programs.backward)
    with pytest.raises(NotTraceable, match="int64"):
        record_step(lambda x, row: (x.to(torch.int64), row), x[:, 0], 1)


def test_a_second_derivative_is_refused():
    cell = Everything(4, False)
    x = torch.randn(2, 3, 4, requires_grad=True)
    (first,) = torch.autograd.grad((cell(x)[0].counts ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    "change",
    [
        {"code": ((0, 9, 0, 1, 0),)},  # writes beyond the registers
        {"code": ((0, 0, 0, 1, 0),)},  # writes an input
        {"code": ((99, 3, 0, 1, 0),)},  # no such instruction
        {"code": ((0, 3, 0, 4, 0),)},  # reads what nothing was written to
        {"code": ((11, 3, 0, 2**40, 0),)},  # shifts by more than an index holds
        {"code": ((0, 3, 0),)},
        {"outs": (4,)},
        {"outs": (0,)},
        {"registers": 10**6},
        {"constants": ("x",)},
        {"inputs": 1.5},
    ],
)
def test_a_program_that_would_write_elsewhere_is_refused(change):
    good = {"code": ((0, 3, 0, 1, 0),), "constants": (1.0,), "inputs": 2, "registers": 5, "outs": (3,)}
    Program(**good)
    with pytest.raises(OperandError):
        Program(**(good | change))
