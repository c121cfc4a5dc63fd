"""Sample inputs of the leaky scan, on which the conformance kit compares kernels with the naive twins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fastsnn_leaky.scan import LifRule, SurrogateForm, forward_naive

Sample = tuple[Any, ...]
RULES = LifRule(0.5, -2.0, 2.0), LifRule(0.9, 0.0, 1.0, True, True), LifRule(0.0, 0.0, float("inf"))


def scans() -> Iterator[tuple[Any, ...]]:
    """``(x, v, keep, theta, rule)``: several rules, resets, and lengths around a checkpoint."""
    for i, rule in enumerate(RULES):
        for t in (1, 5, 130):
            draw = torch.Generator().manual_seed(100 * i + t)
            x, v = torch.randn(2, t, 37, generator=draw) * 2, torch.randn(2, 37, generator=draw)
            keep = torch.rand(2, t, generator=draw) > 0.2 if t == 5 else torch.empty(0, 0, dtype=torch.bool)
            yield x, v, keep, torch.tensor(0.37 + i), rule


def forward() -> Iterator[Sample]:
    """Of ``lif_scan``."""
    for x, v, keep, theta, rule in scans():
        yield x, v, keep, theta, rule
        yield x.double(), v.double(), keep, theta.double(), rule


def membrane() -> Iterator[Sample]:
    """Of ``lif_membrane``."""
    for x, v, keep, theta, rule in scans():
        yield x, v[:, None], keep, theta, rule


def backward() -> Iterator[Sample]:
    """Of ``lif_scan_backward``, with every closed form of the surrogate and a table of slopes."""
    for i, (x, v, keep, theta, rule) in enumerate(scans()):
        marks = forward_naive(x, v, keep, theta, rule)[2]
        draw = torch.Generator().manual_seed(i)
        grad, end = torch.randn(x.shape, generator=draw), torch.randn(v.shape, generator=draw)
        slope = torch.rand(x.shape, generator=draw) if i % 2 else x.new_empty(0)
        form = ((0, 0.0), (1, 0.5), (2, 2.0))[i % 3]
        yield grad, end, x, marks, keep, slope, theta, rule, SurrogateForm(*form, bool(i % 2))


def cells() -> Iterator[tuple[Any, ...]]:
    """``(x, states, operands, keep, programs)``: a step with every row operation, each channel alone or not."""
    from fastsnn_leaky.cell_adjoint import programs_of
    from fastsnn_leaky.cell_tape import TracedRow, record_step

    def triangle(u: TracedRow) -> Any:
        return (1 - abs(u - 1) / 2).clamp_min(0.0)

    def step(x: TracedRow, row: tuple[Any, ...], w: Any, across: bool) -> Any:
        v, a = row
        u = (v / 2 + w * x + 0.1 * (x - v).clamp(-2.0, 1.5).exp()).clamp_max(3.0)
        if across:
            u = u - 0.1 * (a.sum(1, keepdim=True) - a.shifted(1) + a.shifted(-2))
        s = u.spike(triangle)
        return u, s, (torch.where(s.detach() > 0, -u, u), 0.5 * a + s)

    for i, across in enumerate((False, True)):
        for t in (1, 5, 130):
            draw = torch.Generator().manual_seed(10 * i + t)
            x, w = torch.randn(2, t, 37, generator=draw), torch.rand(37, generator=draw)
            states = torch.randn(2, 2, 37, generator=draw)
            keep = torch.rand(2, t, generator=draw) > 0.2 if t == 5 else torch.empty(0, 0, dtype=torch.bool)
            for kind in (torch.float32, torch.float64)[: 2 if t == 5 else 1]:
                now, held = x.to(kind), w.to(kind)
                tape, outs, new = record_step(lambda x, row: step(x, row, held, across), now[:, 0], 2)  # noqa: B023
                programs = programs_of(tuple(tape.entries), outs, new, tape.double)
                yield now, states.to(kind), torch.stack([p.expand(37) for p in tape.operands]), keep, programs


def cell_forward() -> Iterator[Sample]:
    """Of ``cell_scan``."""
    for x, states, operands, keep, programs in cells():
        yield x, states, operands, keep, programs.forward


def cell_backward() -> Iterator[Sample]:
    """Of ``cell_scan_backward``."""
    from fastsnn_leaky.cell_scan import forward_cell_naive

    for i, (x, states, operands, keep, programs) in enumerate(cells()):
        outs, last, marks = forward_cell_naive(x, states, operands, keep, programs.forward)
        draw = torch.Generator().manual_seed(i)
        grad, carry = (torch.randn(rows.shape, generator=draw, dtype=x.dtype) for rows in (outs, last))
        yield grad, carry, x, marks, operands, keep, programs.advance, programs.backward
