"""The conformance kit over this plugin, and its spikes beside those of snnTorch's RLeaky."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import create
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
