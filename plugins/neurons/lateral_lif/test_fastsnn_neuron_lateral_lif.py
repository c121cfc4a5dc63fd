"""The conformance kit over this plugin; its definition, written out."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_lateral_lif = conformance("lateral_lif")


def test_the_definition_step_by_step():
    torch.manual_seed(0)
    neuron = create("neuron", "lateral_lif", threshold=0.5, fixed=True).build(2)
    x = torch.randn(1, 50, 2).abs() * 0.6
    far = torch.tensor([[abs(i - j) for i in range(2)] for j in range(2)]).float()
    v = s = torch.zeros(1, 2)
    rows = []
    for t in range(50):
        u = 0.5 * v + x[:, t] / 0.5 - 0.2 * s @ (far > 0).float()
        s = (u >= 1).float()
        v = u - s
        rows.append(s)
    assert torch.equal(neuron(x, None, None)[0].counts, torch.stack(rows, 1))
    assert 0 < float(torch.stack(rows, 1).mean()) < 1


@pytest.mark.parametrize("reach", [0, 1, 3, 9])
def test_inhibition_is_a_matrix_of_distances(reach):
    neuron = create("neuron", "lateral_lif", reach=reach, fixed=True).build(6)
    torch.nn.init.uniform_(neuron.g)
    far = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    g = torch.cat([torch.zeros(1), neuron.g.detach(), torch.zeros(9)])
    weights = torch.where(far > 0, neuron.g[0].detach(), 0.0) if not reach else g[far]
    s = (torch.rand(4, 6) > 0.5).float()
    torch.testing.assert_close(neuron.inhibition(s), s @ weights)


def test_the_strongest_input_holds_the_others_down():
    x = torch.tensor([1.3, 0.55, 0.52]).expand(1, 80, 3)
    counts = {}
    for strength in (0.0, 0.5):
        neuron = create("neuron", "lateral_lif", tau=5.0, strength=strength, fixed=True).build(3)
        counts[strength] = neuron(x, None, None)[0].counts[0].sum(0)
    assert counts[0.5][1] < 0.5 * counts[0.0][1]
    assert counts[0.5][0] > counts[0.5][1:].sum()
