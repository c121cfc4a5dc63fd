"""The conformance kit over this plugin; its definition, written out."""

from __future__ import annotations

import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_izhikevich = conformance("izhikevich")


def test_the_definition_step_by_step():
    torch.manual_seed(0)
    neuron = create("neuron", "izhikevich", threshold=0.5, fixed=True).build(2)
    x = torch.randn(1, 200, 2).abs() * 0.6
    v, w, rows = torch.full((1, 2), -65.0), torch.full((1, 2), -13.0), []
    for t in range(200):
        current = 15 * x[:, t] / 0.5
        for _ in range(2):
            v = (v + 0.5 * (0.04 * v**2 + 5 * v + 140 - w + current)).clamp(-100, 100)
        w = w + 0.02 * (0.2 * v.clamp(max=30) - w)
        s = (v >= 30).float()
        v, w = torch.where(s > 0, -65.0, v), torch.where(s > 0, w + 8, w)
        rows.append(s)
    assert torch.equal(neuron(x, None, None)[0].counts, torch.stack(rows, 1))
    assert 0 < float(torch.stack(rows, 1).mean()) < 1


def test_it_spikes_ever_more_slowly_and_chattering_comes_in_bursts():
    """Regular spiking adapts; with a higher reset and less recovery spikes come in bursts (figure 2 of the paper)."""
    x = torch.full((1, 400, 1), 1.0)
    gaps = {}
    for name, how in {"regular": {}, "chattering": {"c": -50.0, "d": 2.0}}.items():
        neuron = create("neuron", "izhikevich", current=10.0, fixed=True, **how).build(1)
        gaps[name] = neuron(x, None, None)[0].counts[0, :, 0].nonzero().flatten().diff()
    assert gaps["regular"][-1] > 1.5 * gaps["regular"][0]
    assert gaps["chattering"].max() > 3 * gaps["chattering"].min()
    still = create("neuron", "izhikevich", fixed=True).build(1)
    assert float(still(torch.zeros(1, 200, 1), None, None)[0].counts.sum()) == 0
