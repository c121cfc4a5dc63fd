"""The conformance kit over this plugin, and its spikes beside those of SpikingJelly's ParametricLIFNode."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_plif = conformance("plif")

# recorded from spikingjelly 2.0.0: ParametricLIFNode(init_tau=tau, v_threshold=θ, v_reset=0 or None, decay_input=…)
PLIF = [
    (2.0, 0.5, True, True, "1000111100000100000010001000010010111000"),
    (4.0, 0.5, True, True, "0010100000010000000101000000000000100000"),
    (3.0, 1.0, False, False, "0000110000001001011101000010111110010000"),
]


def inputs(tau: float, n: int = 40) -> torch.Tensor:
    """Quarters, so that membranes meet the threshold exactly."""
    return torch.randint(-3, 8, (n,), generator=torch.Generator().manual_seed(int(tau * 10))) / 4


@pytest.mark.parametrize(("tau", "threshold", "hard", "decay", "wanted"), PLIF)
def test_spikes_are_those_of_spikingjelly(tau, threshold, hard, decay, wanted):
    how = {"tau": tau, "threshold": threshold, "hard_reset": hard, "decay_input": decay, "fixed": True}
    neuron = create("neuron", "plif", **how).build(1)
    counts = neuron(inputs(tau)[None, :, None], None, None)[0].counts
    assert "".join(str(int(c)) for c in counts.flatten()) == wanted


def test_each_channel_learns_its_own_time_constant():
    neuron = create("neuron", "plif", per_channel=True, fixed=True).build(3)
    neuron(torch.rand(2, 5, 3) * torch.tensor([1.0, 2.0, 0.5]), None, None)[0].value().sum().backward()
    assert neuron.w.grad.shape == (3,)
    assert len(set(neuron.w.grad.tolist())) == 3
