"""The conformance kit over this plugin; its definition, written out."""

from __future__ import annotations

import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_axonal_delay = conformance("axonal_delay")


def test_the_definition_step_by_step():
    torch.manual_seed(0)
    neuron = create("neuron", "axonal_delay", threshold=0.5, fixed=True).build(2)
    x = torch.randn(1, 50, 2).abs() * 0.6
    late = neuron.delay.detach().round().long().tolist()
    v, rows = torch.zeros(1, 2), []
    for t in range(50):
        u = 0.5 * v + x[:, t] / 0.5
        v = u - (u >= 1).float()
        rows.append((u >= 1).float())
    now = torch.stack(rows, 1)
    rows = [
        torch.stack([now[:, t - d, i] if t >= d else torch.zeros(1) for i, d in enumerate(late)], 1) for t in range(50)
    ]
    assert torch.equal(neuron(x, None, None)[0].counts, torch.stack(rows, 1))
    assert 0 < float(torch.stack(rows, 1).mean()) < 1


def test_spikes_arrive_later_and_streams_remember_them():
    neuron = create("neuron", "axonal_delay", longest=5, fixed=True).build(3)
    with torch.no_grad():
        neuron.delay.copy_(torch.tensor([0.0, 2.4, 9.0]))
    x = torch.zeros(1, 8, 3)
    x[0, 1] = 1.0
    assert neuron(x, None, None)[0].counts[0].nonzero().tolist() == [[1, 0], [3, 1], [6, 2]]
    first, state = neuron(x[:, :2], None, None)
    rest, _ = neuron(x[:, 2:], state, None)
    assert torch.cat([first.counts, rest.counts], 1)[0].nonzero().tolist() == [[1, 0], [3, 1], [6, 2]]


def test_a_delay_is_learnt():
    neuron = create("neuron", "axonal_delay", longest=9, threshold=10.0, fixed=True).build(1)
    x = torch.exp(-((torch.arange(24.0) - 5) ** 2) / 8).view(1, 24, 1)
    with torch.no_grad():
        neuron.delay.fill_(6.0)
        wanted = neuron.walk(x, None, None)[0]
        neuron.delay.fill_(3.0)
    rule = torch.optim.Adam(neuron.parameters(), lr=0.1)
    for _ in range(60):
        rule.zero_grad()
        (neuron.walk(x, None, None)[0] - wanted).square().sum().backward()
        rule.step()
    assert abs(float(neuron.delay.detach()) - 6.0) < 0.6
