"""The conformance kit over this plugin; its definition, written out."""

from __future__ import annotations

import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_refractory_lif = conformance("refractory_lif")


def test_the_definition_step_by_step():
    torch.manual_seed(0)
    neuron = create("neuron", "refractory_lif", threshold=0.5, fixed=True).build(2)
    x = torch.randn(1, 50, 2).abs() * 0.6
    v = r = torch.zeros(1, 2)
    rows = []
    for t in range(50):
        u = (0.5 * v + x[:, t] / 0.5) * (r == 0)
        s = (u >= 1).float()
        v, r = u * (1 - s), torch.where(s > 0, torch.tensor(2.0), (r - 1).clamp(min=0))
        rows.append(s)
    assert torch.equal(neuron(x, None, None)[0].counts, torch.stack(rows, 1))
    assert 0 < float(torch.stack(rows, 1).mean()) < 1


def test_after_a_spike_it_rests_for_the_period():
    for period in (0, 1, 3):
        neuron = create("neuron", "refractory_lif", period=period, fixed=True).build(1)
        found = neuron(torch.full((1, 24, 1), 5.0), None, None)[0].counts[0, :, 0].nonzero().flatten()
        assert found.tolist() == list(range(0, 24, period + 1))
    without = create("neuron", "refractory_lif", period=0, fixed=True).build(3)
    lif = create("neuron", "lif", hard_reset=True, fixed=True).build(3)
    x = torch.randn(2, 40, 3) * 2
    assert torch.equal(without(x, None, None)[0].counts, lif(x, None, None)[0].counts)
