"""The conformance kit over this plugin, and its spikes beside those of snnTorch's RLeaky."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsnn_core import create
from fastsnn_core.ops.dispatch import paths, reasons
from fastsnn_core.testing import conformance

test_recurrent_lif = conformance("recurrent_lif")

# recorded from snntorch 1.0.0: RLeaky(beta=1-1/tau, linear_features=2, threshold=θ, reset_mechanism=…), two neurons
RLEAKY = [
    (2.0, 1.0, False, "10 00 11 11 01 00 00 00 00 00 10 00 10 00 10 00 10 11 10"
     " 00 01 00 00 10 01 00 10 01 10 10 01 00 00 10 01 00 00 10 10 10"),
    (5.0, 1.5, False, "01 00 00 10 01 00 10 01 00 00 00 10 00 00 01 10 00 11 01"
     " 00 00 00 01 00 11 00 00 01 01 00 11 10 01 00 00 10 00 00 00 11"),
    (2.0, 1.0, True, "10 00 11 00 00 00 00 10 01 00 00 00 10 00 00 00 10 01 00"
     " 00 01 00 00 10 01 00 10 01 10 00 01 00 00 11 00 00 00 10 00 00"),
]  # fmt: skip


def inputs(tau: float, n: int = 40) -> torch.Tensor:
    """Quarters, so that membranes meet the threshold exactly."""
    return torch.randint(-3, 8, (n,), generator=torch.Generator().manual_seed(int(tau * 10))) / 4


@pytest.mark.parametrize(("tau", "threshold", "zero", "wanted"), RLEAKY)
def test_spikes_are_those_of_snntorch(tau, threshold, zero, wanted):
    how = {"tau": tau, "threshold": threshold, "hard_reset": zero, "convention": "snntorch"}
    neuron = create("neuron", "recurrent_lif", **how).build(2)
    with torch.no_grad():
        neuron.recurrent.weight.copy_(torch.tensor([[0.5, -0.75], [1.0, -0.25]]))
        neuron.recurrent.bias.copy_(torch.tensor([0.125, -0.125]))
    counts = neuron(inputs(tau, 80).reshape(1, 40, 2), None, None)[0].counts
    assert " ".join("".join(str(int(c)) for c in row) for row in counts[0]) == wanted


def test_a_spike_comes_back_one_step_later():
    neuron = create("neuron", "recurrent_lif", tau=2.0, fixed=True).build(2)
    with torch.no_grad():
        neuron.recurrent.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    x = torch.zeros(1, 3, 2)
    x[0, 0, 0] = 1.0
    assert neuron(x, None, None)[0].counts[0].tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(("convention", "spikes"), [("fastsnn", 1.0), ("snntorch", 0.0)])
def test_exactly_at_the_threshold(convention, spikes):
    neuron = create("neuron", "recurrent_lif", scale=0.0, fixed=True, convention=convention).build(1)
    for p in neuron.parameters():
        torch.nn.init.zeros_(p)
    assert neuron(torch.ones(1, 1, 1), None, None)[0].counts.item() == spikes


@settings(max_examples=25, deadline=None)
@given(
    hard=st.booleans(), resets=st.booleans(), batch=st.integers(1, 3), steps=st.integers(1, 9), wide=st.integers(1, 12),
    everything=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_scan_is_the_loop_and_its_gradient(hard, resets, batch, steps, wide, everything, seed):
    torch.manual_seed(seed)
    how = {"fixed": True, "hard_reset": hard, "threshold": 0.7, "scale": 2.0}
    neuron = create("neuron", "recurrent_lif", **how).build(wide).double()
    x = torch.randn(batch, steps, wide).double() * 1.5
    state = torch.randn(batch, wide).double(), (torch.rand(batch, wide) > 0.5).double()
    reset = torch.rand(batch, steps) > 0.7 if resets else None
    found = []
    for loop in (False, True):
        if loop:
            neuron.compiled = lambda *given: None
        neuron.zero_grad()
        leaves = [t.clone().requires_grad_() for t in (x, *state)]
        u, s, row = neuron.walk(leaves[0], tuple(leaves[1:]), reset)
        weight = torch.linspace(-1, 1, s.numel(), dtype=s.dtype).cos().view(s.shape)
        loss = (2 * s * weight).sum()
        if everything:
            loss = loss + (0.3 * u * weight).sum() + sum((r * r).sum() for r in row)
        loss.backward()
        if not loop:
            assert paths()["cell_scan"] == "recurrent_scan"
        found.append([u, s, *row, *(leaf.grad for leaf in leaves), neuron.recurrent.weight.grad.clone()])
    assert all(torch.equal(a, b) for a, b in zip(found[0][:4], found[1][:4]))
    for a, b in zip(found[0][4:], found[1][4:]):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_what_the_scan_cannot_see_is_a_loop():
    neuron, x = create("neuron", "recurrent_lif", fixed=True).build(3), torch.rand(1, 2, 3)
    neuron.recurrent.register_forward_hook(lambda *given: None)
    neuron(x)
    assert reasons()["cell_scan"].startswith("a delayed reset, or recurrent weights")
    neuron = create("neuron", "recurrent_lif", fixed=True).build(3)
    neuron(x * float("nan"))
    assert reasons()["cell_scan"] == "a potential is NaN"
    assert bool(neuron(x * float("nan"))[0].counts.isnan().all())
