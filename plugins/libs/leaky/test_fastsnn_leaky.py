"""lif_scan against its equations: gradients by autograd, refusals, poisoned memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsnn_core import ops
from fastsnn_leaky import scan
from fastsnn_leaky.scan import lif_scan, thresholds


def by_autograd(x, v, keep, theta, *, beta, lo, hi, heaviside, hard, surrogate, attached):
    """The equations of `ops.lif`, differentiated by torch itself."""
    first, last = thresholds(lo, hi, heaviside)
    outs = []
    for t in range(x.shape[1]):
        if keep is not None:
            v = v * keep[:, t, None]
        u = beta * v + x[:, t] / theta
        c = ops.count(u, lo, hi, heaviside=heaviside, slope=lambda u: ops.derivative(u, *surrogate, first, last))
        v = u * (c == 0) if hard else u - (c if attached else c.detach())
        outs.append(c)
    return torch.stack(outs, 1), v


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 140), st.integers(1, 5)),
    beta=st.sampled_from([0.0, 0.5, 0.9]),
    binary=st.booleans(),
    hard=st.booleans(),
    surrogate=st.sampled_from([("identity", 0.0), ("window", 0.5), ("atan", 2.0)]),
    resets=st.booleans(),
    attached=st.booleans(),
    seed=st.integers(0, 99),
)
def test_lif_scan_is_its_equations(shape, beta, binary, hard, surrogate, resets, attached, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64) * 2
    v0 = torch.randn(shape[0], shape[2], generator=g, dtype=torch.float64)
    reset = torch.rand(shape[:2], generator=g) < 0.2 if resets else None
    keep = None if reset is None else (~reset).double()
    kind = {
        "beta": beta,
        "lo": 0.0 if binary else -3.0,
        "hi": 1.0 if binary else 3.0,
        "heaviside": binary,
        "hard": hard,
        "attached": attached and not hard,
    }
    grads, outs = [], []
    for run in ("ours", "autograd"):
        leaves = x.clone().requires_grad_(), v0.clone().requires_grad_()
        if run == "ours":
            c, v = lif_scan(*leaves, reset, surrogate=surrogate, **kind)
        else:
            c, v = by_autograd(*leaves, keep, 1.0, surrogate=surrogate, **kind)
        (c.sin() * torch.arange(c.numel()).reshape(c.shape).cos()).sum().add((v**2).sum()).backward()
        outs.append((c.detach(), v.detach()))
        grads.append([leaf.grad for leaf in leaves])
    assert torch.equal(outs[0][0], outs[1][0])
    torch.testing.assert_close(outs[0][1], outs[1][1])
    torch.testing.assert_close(grads[0], grads[1])


def test_a_custom_surrogate_costs_a_pass_and_is_right():
    x = torch.linspace(-3, 3, 60, dtype=torch.float64).reshape(2, 5, 6)
    grads = []
    for surrogate in (("atan", 2.0), lambda u, first, last: ops.derivative(u, "atan", 2.0, first, last)):
        leaf = x.clone().requires_grad_()
        lif_scan(leaf, beta=0.5, lo=-2, hi=2, surrogate=surrogate)[0].cos().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_inside_the_window_an_attached_reset_gives_each_token_the_gradient_of_its_own_count():
    x = torch.linspace(-3, 3, 60, dtype=torch.float64).reshape(2, 5, 6).requires_grad_()
    weights = torch.arange(60.0).reshape(2, 5, 6).double()
    (lif_scan(x, beta=0.5, lo=-8, hi=8, attached=True)[0] * weights).sum().backward()
    assert torch.equal(x.grad, weights)


def test_lif_scan_refuses_other_shapes():
    with pytest.raises(ValueError, match="no gradient through a hard reset"):
        lif_scan(torch.zeros(1, 3, 4), beta=0.5, lo=0, hi=1, hard=True, attached=True)
    with pytest.raises(ValueError, match=r"\[B, T, D\]"):
        lif_scan(torch.zeros(3, 4), beta=0.5, lo=0, hi=1)


def test_lif_scan_is_a_torch_operator():
    x = torch.randn(2, 9, 3, requires_grad=True)
    args = (x, torch.zeros(2, 3), torch.empty(0, 0, dtype=torch.bool), torch.empty(0), torch.ones(()))
    with ops.use("naive"):
        torch.library.opcheck(scan._lif_scan, (*args, 0.5, -2.0, 2.0, False, False, 1, 0.5))


def test_use_forces_and_paths_tell():
    with ops.use("naive"):
        lif_scan(torch.zeros(1, 2, 3), beta=0.5, lo=0, hi=1)
        assert ops.paths()["lif_scan"] == "naive"
    with pytest.raises(LookupError, match="no kernel set 'nosuch'"), ops.use("nosuch"):
        lif_scan(torch.zeros(1, 2, 3), beta=0.5, lo=0, hi=1)


def test_nothing_reads_unwritten_memory(poisoned):
    counts, v1 = lif_scan(torch.randn(2, 150, 7), beta=0.9, lo=-4, hi=4)
    assert torch.isfinite(counts).all()
    assert torch.isfinite(v1).all()


def test_a_leaky_sum_by_doubling_is_the_loop():
    from fastsnn_leaky.decay import decayed, decayed_in_order

    for steps in (1, 2, 7, 64):
        x, start = torch.randn(2, steps, 3).double(), torch.randn(2, 3).double()
        marks = torch.rand(2, steps) < 0.2
        beta = torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
        for reset in (None, marks):
            found, wanted = (f(x, start, beta, reset) for f in (decayed, decayed_in_order))
            torch.testing.assert_close(found, wanted)
            weights = torch.randn_like(found)
            grads = [torch.autograd.grad((y * weights).sum(), beta)[0] for y in (found, wanted)]
            torch.testing.assert_close(*grads)


def test_a_leaky_sum_in_order_has_the_same_bits_however_it_is_cut():
    from fastsnn_leaky.decay import decayed_in_order

    x, start, beta = torch.randn(2, 64, 3), torch.randn(2, 3), torch.tensor([0.2, 0.9, 1.0])
    whole = decayed_in_order(x, start, beta)
    for cut in (1, 6, 31, 63):
        first = decayed_in_order(x[:, :cut], start, beta)
        assert torch.equal(torch.cat([first, decayed_in_order(x[:, cut:], first[:, -1], beta)], 1), whole)


def test_a_scan_and_its_gradient_import_no_compiler():
    body = (
        "import sys, torch\n"
        "from fastsnn_leaky.scan import lif_scan\n"
        "x = torch.ones(1, 3, 2, requires_grad=True)\n"
        "lif_scan(x, beta=0.5, lo=-7.0, hi=7.0)[0].sum().backward()\n"
        "print(x.grad.shape, [name for name in ('sympy', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "torch.Size([1, 3, 2]) []", done
