"""The conformance kit over this plugin; its definition, written out."""

from __future__ import annotations

import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_qif = conformance("qif")


def test_the_definition_step_by_step():
    torch.manual_seed(0)
    neuron = create("neuron", "qif", threshold=0.5, fixed=True).build(2)
    x = torch.randn(1, 50, 2).abs() * 0.6
    tau, a, vc = 2.0, 1.0, 0.8
    v, rows = torch.zeros(1, 2), []
    for t in range(50):
        u = (v + (x[:, t] / 0.5 + a * v * (v - vc)) / tau).clamp(min=-1.0)
        s = (u >= 1).float()
        v = u * (1 - s)
        rows.append(s)
    assert torch.equal(neuron(x, None, None)[0].counts, torch.stack(rows, 1))
    assert 0 < float(torch.stack(rows, 1).mean()) < 1


def test_above_the_critical_level_it_spikes_by_itself_and_below_it_sinks_back():
    neuron = create("neuron", "qif", tau=2.0, a=1.0, critical=0.5, fixed=True).build(2)
    x = torch.zeros(1, 60, 2)
    x[0, 0] = torch.tensor([0.9, 1.1])  # u = x / 2 = 0.45 and 0.55
    assert neuron(x, None, None)[0].counts[0].sum(0).tolist() == [0.0, 1.0]
