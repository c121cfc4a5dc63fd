"""The conformance kit over this plugin; its definition, written out."""

from __future__ import annotations

import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_eif = conformance("eif")


def test_the_definition_step_by_step():
    torch.manual_seed(0)
    neuron = create("neuron", "eif", threshold=0.5, fixed=True).build(2)
    x = torch.randn(1, 50, 2).abs() * 0.6
    v, rows = torch.zeros(1, 2), []
    for t in range(50):
        u = v + (x[:, t] / 0.5 - v + 0.2 * ((v - 0.8) / 0.2).exp()) / 2
        s = (u >= 1).float()
        v = u * (1 - s)
        rows.append(s)
    assert torch.equal(neuron(x, None, None)[0].counts, torch.stack(rows, 1))
    assert 0 < float(torch.stack(rows, 1).mean()) < 1


def test_beyond_the_upstroke_it_spikes_by_itself():
    neuron = create("neuron", "eif", tau=4.0, upstroke=0.6, sharpness=0.1, fixed=True).build(2)
    x = torch.zeros(1, 60, 2)
    x[0, 0] = torch.tensor([3.0, 3.6])  # u = x / 4 = 0.75 and 0.9
    assert neuron(x, None, None)[0].counts[0].sum(0).tolist() == [0.0, 1.0]
