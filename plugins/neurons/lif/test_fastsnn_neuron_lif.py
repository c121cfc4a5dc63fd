"""The conformance kit over this plugin, and its spikes beside those of snnTorch's Leaky."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_lif = conformance("lif")

# recorded from snntorch 1.0.0: Leaky(beta=1-1/tau, threshold=θ, reset_mechanism="zero" or "subtract"), 40 steps
LEAKY = [
    (1.25, 1.0, False, "1001000001000010000010001001001000000000"),
    (1.25, 0.7, False, "1011010001100010000110001001001000000000"),
    (1.25, 1.0, True, "1001010001100010000010001001001000000000"),
    (2.0, 1.0, False, "1000101000000100000010001000010010110000"),
    (2.0, 0.7, False, "1000111100000100010010001000010010111000"),
    (2.0, 1.0, True, "1000111000000100000010001000010010110000"),
    (5.0, 1.0, False, "0111011000011001001000100000111000110100"),
    (5.0, 0.7, False, "0111111000011101001100100000111100110101"),
    (5.0, 1.0, True, "0101011000011000001000100000111000110000"),
    (20.0, 1.0, False, "0011011110010111010101111000001011100010"),
    (20.0, 0.7, False, "1011011110111111111101111100001111110010"),
    (20.0, 1.0, True, "0010011000100110010001010000001011000000"),
]


def inputs(tau: float) -> torch.Tensor:
    """Quarters, so that membranes meet the threshold exactly."""
    return torch.randint(-3, 8, (40,), generator=torch.Generator().manual_seed(int(tau * 10))) / 4


@pytest.mark.parametrize(("tau", "threshold", "zero", "wanted"), LEAKY)
@pytest.mark.parametrize("cut", [40, 7, 1])
def test_with_a_delayed_reset_the_spikes_are_those_of_snntorch(tau, threshold, zero, wanted, cut):
    neuron = create("neuron", "lif", tau=tau, threshold=threshold, hard_reset=zero, reset_delay=True).build(1)
    state, found = None, ""
    for piece in inputs(tau)[None, :, None].split(cut, 1):
        spikes, state = neuron(piece, state, None)
        found += "".join(str(int(c)) for c in spikes.counts.flatten())
    assert found == wanted


def test_without_it_they_are_not():
    neuron = create("neuron", "lif", tau=2.0).build(1)
    found = neuron(inputs(2.0)[None, :, None], None, None)[0].counts.flatten()
    assert "".join(str(int(c)) for c in found) != LEAKY[3][3]


@pytest.mark.parametrize("delay", [False, True])
def test_what_is_not_a_number_is_seen(delay):
    neuron = create("neuron", "lif", reset_delay=delay).build(2)
    x = torch.tensor([[[0.5, 2.0], [float("nan"), 0.0], [1.0, 2.0]]])
    counts = neuron(x, None, None)[0].counts
    assert counts[0, 1, 0].isnan()
    assert counts[0, :, 1].isfinite().all()


def test_the_delayed_reset_has_the_gradient_of_its_surrogate():
    neuron = create("neuron", "lif", reset_delay=True).build(1)
    x = torch.tensor([[[0.9], [1.4], [0.2]]], requires_grad=True)
    neuron(x, None, None)[0].value().sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).all()


# recorded from spikingjelly 2.0.0: LIFNode(tau=tau, v_threshold=θ, v_reset=0 or None), 40 steps
LIFNODE = [
    (2.0, 1.0, True, "0000001000000000000000000000000000100000"),
    (4.0, 0.5, True, "0010100000010000000101000000000000100000"),
    (2.0, 0.5, False, "1000111100000100000010001000010010111000"),
    (5.0, 0.25, False, "0101101000011000001100000000111000110100"),
]


@pytest.mark.parametrize(("tau", "threshold", "hard", "wanted"), LIFNODE)
def test_with_its_convention_the_spikes_are_those_of_spikingjelly(tau, threshold, hard, wanted):
    how = {"tau": tau, "threshold": threshold, "hard_reset": hard, "convention": "spikingjelly"}
    neuron = create("neuron", "lif", **how).build(1)
    neuron.calibrate_(torch.full((1, 1, 1), 9.0))
    counts = neuron(inputs(tau)[None, :, None], None, None)[0].counts
    assert "".join(str(int(c)) for c in counts.flatten()) == wanted


def test_conventions_are_names_for_settings_with_a_fixed_threshold():
    x = torch.randn(2, 30, 4)
    peer = create("neuron", "lif", convention="snntorch").build(4)
    peer.calibrate_(x * 9)
    own = create("neuron", "lif", reset_delay=True).build(4)
    assert torch.equal(peer(x, None, None)[0].counts, own(x, None, None)[0].counts)
