"""The conformance kit over this plugin; the distance by its definition, and what it learns."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import create
from fastsnn_core.errors import FastSNNError
from fastsnn_core.testing import conformance
from fastsnn_objective_van_rossum import VanRossum

test_van_rossum = conformance("van_rossum")


def test_the_distance_by_its_definition():
    s, z = (torch.rand(3, 9, 4) > 0.5).float(), (torch.rand(3, 9, 4) > 0.7).float()
    t = torch.arange(9)
    kernel = torch.where(t[:, None] >= t, 0.75 ** (t[:, None] - t).clamp_min(0).double(), 0.0).float()  # [t, t']
    f, g = torch.einsum("tu,buc->btc", kernel, s), torch.einsum("tu,buc->btc", kernel, z)
    wanted = (f - g).square().sum((1, 2)) / (4.0 * 4)
    torch.testing.assert_close(VanRossum(tau=4.0).loss(s, z), wanted)
    assert torch.equal(VanRossum().loss(s, s), torch.zeros(3))


def test_one_spike_against_none_costs_half():
    """Σ (1 - 1/tau)^{2t} / tau goes to 1 / (2 - 1/tau): van Rossum's 1/2 for long time constants."""
    s = torch.zeros(1, 4000, 1)
    s[0, 0] = 1.0
    found = VanRossum(tau=50.0).loss(s, torch.zeros_like(s))
    torch.testing.assert_close(found, torch.tensor([1 / (2 - 1 / 50)]))
    late = s.roll(3, 1)
    later = s.roll(30, 1)
    near, far = VanRossum(tau=50.0).loss(s, late), VanRossum(tau=50.0).loss(s, later)
    assert near < far < 2 * found  # a spike at the wrong time costs less than two wrong spikes


def test_a_class_is_a_train_of_its_neuron():
    z = VanRossum(period=3).train(torch.zeros(2, 7, 4), torch.tensor([2, 0]))
    assert z[0].nonzero().tolist() == [[0, 2], [3, 2], [6, 2]]
    assert z[1].nonzero().tolist() == [[0, 0], [3, 0], [6, 0]]
    assert create("objective", "van_rossum").read(z).argmax(1).tolist() == [2, 0]
    with pytest.raises(FastSNNError, match="target trains"):
        VanRossum().loss(z, z[:, 1:])
