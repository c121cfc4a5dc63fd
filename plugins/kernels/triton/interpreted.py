"""Every kernel in Triton's interpreter against its naive twin, with TRITON_INTERPRET=1; run by the test beside it."""

from __future__ import annotations

import itertools

import torch

from fastsnn_events import linear as reference
from fastsnn_kernel_triton import lif, linear
from fastsnn_leaky import scan as naive

EMPTY = torch.empty(0, 0, dtype=torch.bool)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal numbers, any NaN for any NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def scans() -> None:
    """lif_scan, its membrane and its backward."""
    torch.manual_seed(0)
    shapes = [(2, 5, 3), (1, 130, 7), (3, 1, 130), (0, 4, 2), (2, 0, 3)]
    kinds = [(False, False), (False, True), (True, False), (True, True)]
    for n, (shape, (heaviside, hard), dtype) in enumerate(
        itertools.product(shapes, kinds, (torch.float32, torch.float64))
    ):
        b, t, d = shape
        x, v = torch.randn(b, t, d, dtype=dtype) * 3, torch.randn(b, d, dtype=dtype)
        if n % 3 == 1:
            x = (x * 2).round() / 2  # halves
        if n % 3 == 2 and x.numel() > 3:
            x.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), 5e6 + 0.5], dtype=dtype)
        keep = torch.rand(b, t) > 0.2 if n % 2 else EMPTY
        lo, hi = [(0.0, 1.0), (-2.0, 4.0), (float("-inf"), float("inf"))][n % 3]
        theta = torch.tensor([1.0, 0.37][n % 2], dtype=dtype)
        rule = naive.LifRule(1 / 3, lo, hi, heaviside, hard)
        right, found = naive.forward_naive(x, v, keep, theta, rule), lif.forward(x, v, keep, theta, rule)
        assert all(same(a, b) for a, b in zip(right, found, strict=True)), ("forward", n)
        marks = right[2]
        if t:
            a, b_ = naive.membrane(x, marks, keep, theta, rule), lif.membrane(x, marks, keep, theta, rule)
            assert same(a, b_), ("membrane", n)
        grads = torch.randn(b, t, d, dtype=dtype), torch.randn(b, d, dtype=dtype)
        form = [(0, 0.0), (1, 0.5), (2, 2.0)][n % 3]
        for attached in (False, True)[: 1 if hard else 2]:
            slope = torch.rand(b, t, d, dtype=dtype) if n % 4 == 3 else torch.empty(0, dtype=dtype)
            words = (*grads, x, marks, keep, slope, theta, rule, naive.SurrogateForm(*form, attached))
            right, found = naive.backward_naive(*words), lif.backward(*words)
            assert all(same(a, b) for a, b in zip(right, found, strict=True)), ("backward", n, attached)
    halves = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
    assert lif.forward(halves, halves[0], EMPTY, halves[0, 0, 0], rule) is NotImplemented


def products() -> None:
    """count_linear and event_linear."""
    torch.manual_seed(1)
    for n, width, columns, largest in [
        (1, 5, 3, 4),
        (33, 130, 70, 200),
        (2, 64, 65, 10**6),
        (3, 7, 2, 2**40),
        (0, 4, 2, 1),
    ]:
        counts = torch.randint(-largest, largest + 1, (n, width))
        weight = torch.randint(-128, 128, (columns, width), dtype=torch.int8)
        counts[:, ::3] = 0
        for w in (weight, weight.T.contiguous().T):
            assert same(reference.count_linear_naive(counts, w), linear.count_linear(counts, w)), (n, width)
            index = counts.flatten().nonzero().flatten()
            index = index[torch.randperm(len(index))]
            values = counts.flatten()[index]
            right, found = (f(index, values, n, w) for f in (reference.event_linear_naive, linear.event_linear))
            assert same(right, found), (n, width)
    small = torch.tensor([[-128.0, 127.0, -64.0, 64.0]])
    weight = torch.full((1, 4), -128, dtype=torch.int8)
    assert same(reference.count_linear_naive(small, weight), linear.count_linear(small, weight))
    assert linear.count_linear(small, weight.int()) is NotImplemented
    for huge in (torch.tensor([[2**56, 2**56, 0, 0]]), torch.tensor([[0.5, 0, 0, 0]])):
        try:
            linear.count_linear(huge, weight)
        except (OverflowError, ValueError):
            continue
        raise AssertionError("sums that wrap and halves must be refused")


if __name__ == "__main__":
    scans()
    products()
    print("all kernels equal their naive twins")
