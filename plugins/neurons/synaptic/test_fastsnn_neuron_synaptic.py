"""The conformance kit over this plugin, and its spikes beside those of snnTorch's Synaptic."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_synaptic = conformance("synaptic")

# recorded from snntorch 1.0.0: Synaptic(alpha=1-1/tau_synapse, beta=1-1/tau, threshold=θ, reset_mechanism=…), 40 steps
SYNAPTIC = [
    (2.0, 4.0, 1.0, False, "1111111100111011001111110010000011110010"),
    (5.0, 2.0, 2.0, False, "0100011111101010010101001000010010111101"),
    (1.25, 20.0, 1.5, False, "0011011010010111001001110000001011100000"),
    (4.0, 4.0, 1.0, True, "1010101001010101001010100100001010100101"),
]


def inputs(tau: float, n: int = 40) -> torch.Tensor:
    """Quarters, so that membranes meet the threshold exactly."""
    return torch.randint(-3, 8, (n,), generator=torch.Generator().manual_seed(int(tau * 10))) / 4


@pytest.mark.parametrize(("tau_synapse", "tau", "threshold", "zero", "wanted"), SYNAPTIC)
@pytest.mark.parametrize("cut", [40, 7])
def test_spikes_are_those_of_snntorch(tau_synapse, tau, threshold, zero, wanted, cut):
    how = {"tau_synapse": tau_synapse, "tau": tau, "threshold": threshold, "hard_reset": zero}
    neuron = create("neuron", "synaptic", convention="snntorch", **how).build(1)
    for part in (neuron, neuron.inner):  # a network's first inputs are shown to both
        part.calibrate_(torch.full((1, 1, 1), 9.0))  # a peer's threshold is not moved by data
    state, found = None, ""
    for piece in inputs(tau)[None, :, None].split(cut, 1):
        spikes, state = neuron(piece, state, None)
        found += "".join(str(int(c)) for c in spikes.counts.flatten())
    assert found == wanted


def test_the_definition_step_by_step():
    neuron = create("neuron", "synaptic", tau_synapse=4.0, tau=2.0, threshold=1.5).build(3).double()
    x, i, v = torch.randn(2, 30, 3, dtype=torch.float64), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    rows = []
    for t in range(30):
        i = 0.75 * i + x[:, t]
        u = 0.5 * v + i
        rows.append((u >= 1.5).double())
        v = u - rows[-1] * 1.5
    found, (current, membrane) = neuron(x, None, None)
    assert torch.equal(found.counts, torch.stack(rows, 1))
    torch.testing.assert_close(current, i)
    torch.testing.assert_close(membrane * 1.5, v)
