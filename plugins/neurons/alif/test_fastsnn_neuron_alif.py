"""The conformance kit over this plugin; a constant input is answered ever more slowly."""

from __future__ import annotations

import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_alif = conformance("alif")


def test_the_threshold_rises_with_every_spike_and_sinks_back():
    neuron = create("neuron", "alif", tau=5.0, tau_adaptation=50.0, lift=0.3, fixed=True).build(1)
    spikes = neuron(torch.full((1, 120, 1), 0.6), None, None)[0].counts[0, :, 0]
    gaps = spikes.nonzero().flatten().diff()
    assert gaps[-1] > gaps[0]
    assert gaps[-5:].max() - gaps[-5:].min() <= 1  # it settles


def test_the_definition_step_by_step():
    neuron = create("neuron", "alif", tau=4.0, tau_adaptation=10.0, lift=0.25, threshold=0.5, fixed=True).build(2)
    x = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    v = a = s = torch.zeros(1, 2)
    rows = []
    for t in range(50):
        a = 0.9 * a + s
        u = 0.75 * v + x[:, t]
        s = (u >= 0.5 * (1 + 0.25 * a)).float()
        v = u - 0.5 * s
        rows.append(s)
    assert torch.equal(neuron(x, None, None)[0].counts, torch.stack(rows, 1))
