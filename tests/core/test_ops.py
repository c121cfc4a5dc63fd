"""Operators against their definitions: gradients by autograd, chunked against recurrent, on poisoned memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsnn_core import ops
from fastsnn_core.ops import lif


def by_autograd(x, v, keep, theta, *, beta, lo, hi, heaviside, hard, surrogate, attached):
    """The equations of `ops.lif`, differentiated by torch itself."""
    first, last = ops.thresholds(lo, hi, heaviside)
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
            c, v = ops.lif_scan(*leaves, reset, surrogate=surrogate, **kind)
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
        ops.lif_scan(leaf, beta=0.5, lo=-2, hi=2, surrogate=surrogate)[0].cos().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_inside_the_window_an_attached_reset_gives_each_token_the_gradient_of_its_own_count():
    x = torch.linspace(-3, 3, 60, dtype=torch.float64).reshape(2, 5, 6).requires_grad_()
    weights = torch.arange(60.0).reshape(2, 5, 6).double()
    (ops.lif_scan(x, beta=0.5, lo=-8, hi=8, attached=True)[0] * weights).sum().backward()
    assert torch.equal(x.grad, weights)


def test_lif_scan_refuses_other_shapes():
    with pytest.raises(ValueError, match="no gradient through a hard reset"):
        ops.lif_scan(torch.zeros(1, 3, 4), beta=0.5, lo=0, hi=1, hard=True, attached=True)
    with pytest.raises(ValueError, match=r"\[B, T, D\]"):
        ops.lif_scan(torch.zeros(3, 4), beta=0.5, lo=0, hi=1)


def test_lif_scan_is_a_torch_operator():
    x = torch.randn(2, 9, 3, requires_grad=True)
    args = (x, torch.zeros(2, 3), torch.empty(0, 0, dtype=torch.bool), torch.empty(0), torch.ones(()))
    with ops.use("naive"):
        torch.library.opcheck(lif._lif_scan, (*args, 0.5, -2.0, 2.0, False, False, 1, 0.5))


def heads(b, t, h, g, k, v, seed=0, gate=True, strength=1.0):
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    log_g = -draw(b, t, g, k).abs() * strength if gate else None
    return draw(b, t, h, k), draw(b, t, g, k), draw(b, t, g, v), None if log_g is None else log_g.clamp_min(-5)


@settings(max_examples=25, deadline=None)
@given(
    t=st.integers(1, 80), gate=st.booleans(), grouped=st.booleans(), resets=st.booleans(), carried=st.booleans(),
    chunk=st.sampled_from([None, 4, 16]), seed=st.integers(0, 9),
)  # fmt: skip
def test_linear_scan_chunked_is_recurrent(t, gate, grouped, resets, carried, chunk, seed):
    q, k, v, log_g = heads(2, t, 4, 2 if grouped else 4, 3, 5, seed, gate)
    rng = torch.Generator().manual_seed(seed + 1)
    reset = torch.rand(2, t, generator=rng) < 0.15 if resets else None
    state = (torch.randn(2, k.shape[2], 3, 5).double(), torch.randn(2, k.shape[2], 3).double()) if carried else None
    fast, slow = (
        f(q, k, v, log_g, state, reset) for f in (lambda *a: ops.linear_scan(*a, chunk), ops.linear_scan_naive)
    )
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("strength", [0.0, 0.3, 50.0])
def test_strong_gates_stay_finite_in_float32(strength):
    q, k, v, log_g = (x.float() for x in heads(1, 200, 2, 2, 8, 8, strength=strength))
    leaves = [x.clone().requires_grad_() for x in (q, k, v, log_g)]
    out, _, _ = ops.linear_scan(*leaves)
    exact, _, _ = ops.linear_scan_naive(q.double(), k.double(), v.double(), log_g.double())
    assert (out.double() - exact).norm() / exact.norm() < 1e-5
    out.sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_linear_scan_gradients():
    q, k, v, log_g = heads(1, 11, 2, 1, 2, 3)
    leaves = [x.requires_grad_() for x in (q, k, v, log_g)]
    assert torch.autograd.gradcheck(lambda *a: ops.linear_scan(*a, chunk=4)[:2], leaves)


def test_use_forces_and_paths_tell():
    with ops.use("naive"):
        ops.lif_scan(torch.zeros(1, 2, 3), beta=0.5, lo=0, hi=1)
        assert ops.paths()["lif_scan"] == "naive"
    with pytest.raises(LookupError, match="no kernel set 'nosuch'"), ops.use("nosuch"):
        ops.lif_scan(torch.zeros(1, 2, 3), beta=0.5, lo=0, hi=1)


def test_nothing_reads_unwritten_memory(poisoned):
    q, k, v, log_g = heads(1, 70, 2, 1, 4, 4)
    assert all(torch.isfinite(x).all() for x in ops.linear_scan(q, k, v, log_g)[:2])
    counts, v1 = ops.lif_scan(torch.randn(2, 150, 7), beta=0.9, lo=-4, hi=4)
    assert torch.isfinite(counts).all()
    assert torch.isfinite(v1).all()


def test_integers_must_be_whole():
    from fastsnn_core import SpikeTensor

    with pytest.raises(ValueError, match="whole numbers"):
        ops.count_linear(SpikeTensor(torch.tensor([[0.5]])), torch.ones(1, 1, dtype=torch.int8))
