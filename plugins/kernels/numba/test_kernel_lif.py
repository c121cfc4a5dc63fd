"""lif_scan, its backward and its membrane in Numba against the naive twins: the same bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsnn_core import create, ops
from fastsnn_leaky import scan
from fastsnn_leaky.scan import lif_scan

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
EMPTY = torch.empty(0, 0, dtype=torch.bool)


@pytest.fixture(autouse=True)
def poisoned():
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def same(a, b):
    """Equal bits, but any NaN for any NaN."""
    bits = {torch.float32: torch.int32, torch.float64: torch.int64}[a.dtype]
    equal = (a.contiguous().view(bits) == b.contiguous().view(bits)) | (a.isnan() & b.isnan())
    return a.dtype == b.dtype and a.shape == b.shape and bool(equal.all())


@st.composite
def cases(draw):
    torch.manual_seed(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from([torch.float32, torch.float32, torch.float64]))
    b, t = draw(st.integers(0, 3)), draw(st.sampled_from([0, 1, 2, 5, 127, 128, 129, 140]))
    d = draw(st.sampled_from([0, 1, 3, 16, 37, 70]))
    x = torch.randn(b, t, d, dtype=kind) * draw(st.sampled_from([0.1, 2.0, 1e4]))
    values = draw(st.sampled_from(["random", "zero", "equal", "ties", "special"]))
    if values in ("zero", "equal"):
        x = torch.full_like(x, 0.0 if values == "zero" else 0.7)
    if values == "ties":
        x = (x * 2).round() / 2
    if values == "special" and x.numel():
        x.view(-1)[:: max(1, x.numel() // 3)] = draw(st.sampled_from([float("nan"), float("inf"), -0.0, 1e-40]))
    keep = torch.rand(b, t) > 0.2 if draw(st.booleans()) else EMPTY
    lo = draw(st.sampled_from([0.0, -2.0, -float("inf")]))
    hi = draw(st.sampled_from([1.0, 4.0, 7.5, float("inf")]))
    theta = torch.tensor(draw(st.sampled_from([1.0, 0.37, 3.1])), dtype=kind)
    beta = draw(st.sampled_from([0.5, 0.0, 0.9, 1 / 3]))
    v = torch.randn(b, d, dtype=kind)
    return x, v, keep, theta, scan.LifRule(beta, lo, hi, draw(st.booleans()), draw(st.booleans()))


def numba(operator):
    name, function = operator.pick("cpu")
    assert name == "numba"
    return function


@quick
@given(cases())
def test_forward_and_membrane(case):
    x, v, keep, theta, rest = case
    right = scan.forward_naive(x, v, keep, theta, rest)
    for a, b in zip(right, numba(scan.FORWARD)(x, v, keep, theta, rest), strict=True):
        assert same(a, b)
    if x.shape[1]:
        right = scan.membrane(x, v[:, None], keep, theta, rest)
        assert same(right, numba(scan.MEMBRANE)(x, v[:, None], keep, theta, rest))


@quick
@given(
    cases(),
    st.sampled_from([(0, 0.0), (1, 0.5), (1, 0.3), (2, 2.0), (2, 1.7)]),
    st.booleans(),
    st.integers(0, 4),
    st.booleans(),
)
def test_backward(case, form, custom, layout, attached):
    x, v, keep, theta, rest = case
    marks = scan.forward_naive(x, v, keep, theta, rest)[2]
    grad = torch.randn_like(x)
    if layout == 1:
        grad = grad.new_ones(()).expand(x.shape)
    elif layout == 2:
        grad = grad[:, :1].expand(x.shape) if x.shape[1] else grad
    elif layout == 3:
        grad = grad[:1].expand(x.shape) if x.shape[0] else grad
    elif layout == 4:
        grad = grad.transpose(0, 2).contiguous().transpose(0, 2)
    slope = torch.rand_like(x) if custom else x.new_empty(0)
    args = (grad, torch.randn_like(v), x, marks, keep, slope, theta, rest, scan.SurrogateForm(*form, attached))
    for a, b in zip(scan.backward_naive(*args), numba(scan.BACKWARD)(*args), strict=True):
        assert same(a, b)


@pytest.mark.parametrize("form", [(1, 0.3), (2, 1.7)])
@pytest.mark.parametrize("heaviside", [True, False])
@pytest.mark.parametrize("attached", [True, False])
def test_closed_forms_round_as_the_twin_does(form, heaviside, attached):
    x, v, theta = torch.randn(2, 130, 40) * 3, torch.randn(2, 40), torch.tensor(0.9)
    rest = scan.LifRule(0.7, -1.0, 2.0, heaviside)
    marks = scan.forward_naive(x, v, EMPTY, theta, rest)[2]
    args = (
        torch.randn_like(x),
        torch.randn_like(v),
        x,
        marks,
        EMPTY,
        x.new_empty(0),
        theta,
        rest,
        scan.SurrogateForm(*form, attached),
    )
    for a, b in zip(scan.backward_naive(*args), numba(scan.BACKWARD)(*args), strict=True):
        assert same(a, b)


@pytest.mark.parametrize("heaviside", [True, False])
def test_a_nan_that_resets_to_zero_passes_no_gradient_on(heaviside):
    x, v, theta = torch.full((1, 1, 1), torch.nan), torch.ones(1, 1), torch.tensor(1.0)
    rest = scan.LifRule(0.5, 0.0, 1.0, heaviside, True)
    marks, empty = v[:, None], x.new_empty(0)
    args = (torch.full_like(x, 2.0), torch.full_like(v, 3.0), x, marks, EMPTY, empty, theta, rest, scan.SurrogateForm())
    for function in (scan.backward_naive, numba(scan.BACKWARD)):
        grad_x, grad_v = function(*args)  # c = NaN, so v was set to 0 and only c's gradient arrives
        assert grad_x.item() == 2.0
        assert grad_v.item() == 1.0


def bell(u, first, last):
    return (-(u - first).abs()).exp()


def test_public_function_on_strided_input_with_learnt_threshold_and_custom_surrogate():
    torch.manual_seed(0)
    reset = torch.rand(2, 150) > 0.9
    found = []
    for kernel in ("naive", "numba"):
        x = torch.linspace(-3, 3, 40 * 150 * 2).view(40, 150, 2).permute(2, 1, 0).requires_grad_()
        theta = torch.tensor(0.8, requires_grad=True)
        with ops.use(kernel):
            counts, v = lif_scan(x, None, reset, theta, beta=0.9, lo=-3, hi=3, surrogate=bell)
            (counts.square().sum() + (v * 3).sum()).backward()
        found.append((counts, v, x.grad, theta.grad))
    for a, b in zip(*found, strict=True):
        assert same(a.detach(), b.detach())


def test_wide_rows_are_cut_into_blocks_and_large_outputs_written_whole():
    x = torch.randn(1, 40, 33_000).requires_grad_()
    grads = []
    for kernel in ("naive", "numba"):
        with ops.use(kernel):
            counts, _ = create("neuron", "lif").build(33_000)(x)
            grads.append((counts.counts.detach(), *torch.autograd.grad(counts.counts.sum(), x)))
    assert same(grads[0][0], grads[1][0])
    assert same(grads[0][1], grads[1][1])


def test_half_precision_is_counted_in_float32():
    x = torch.randn(1, 4, 8).bfloat16()
    with ops.use("numba"):
        counts, _ = lif_scan(x, beta=0.5, lo=-2, hi=2)
        whole, _ = lif_scan(x.float(), beta=0.5, lo=-2, hi=2)
    with ops.use("naive"):
        naive, _ = lif_scan(x.float(), beta=0.5, lo=-2, hi=2)
    assert counts.dtype == torch.float32
    assert len(counts.unique()) > 2  # the sums differ between the types only where something is counted
    assert torch.equal(counts, whole)
    assert torch.equal(counts, naive)
