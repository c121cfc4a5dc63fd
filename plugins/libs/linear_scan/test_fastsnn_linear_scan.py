"""linear_scan: chunked against recurrent, gradients, strong gates, poisoned memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsnn_linear_scan import linear_scan, linear_scan_naive


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
    fast, slow = (f(q, k, v, log_g, state, reset) for f in (lambda *a: linear_scan(*a, chunk), linear_scan_naive))
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("strength", [0.0, 0.3, 50.0])
def test_strong_gates_stay_finite_in_float32(strength):
    q, k, v, log_g = (x.float() for x in heads(1, 200, 2, 2, 8, 8, strength=strength))
    leaves = [x.clone().requires_grad_() for x in (q, k, v, log_g)]
    out, _, _ = linear_scan(*leaves)
    exact, _, _ = linear_scan_naive(q.double(), k.double(), v.double(), log_g.double())
    assert (out.double() - exact).norm() / exact.norm() < 1e-5
    out.sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_linear_scan_gradients():
    q, k, v, log_g = heads(1, 11, 2, 1, 2, 3)
    leaves = [x.requires_grad_() for x in (q, k, v, log_g)]
    assert torch.autograd.gradcheck(lambda *a: linear_scan(*a, chunk=4)[:2], leaves)


def test_nothing_reads_unwritten_memory(poisoned):
    q, k, v, log_g = heads(1, 70, 2, 1, 4, 4)
    assert all(torch.isfinite(x).all() for x in linear_scan(q, k, v, log_g)[:2])
