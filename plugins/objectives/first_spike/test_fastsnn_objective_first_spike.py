"""The conformance kit over this plugin; first spikes by hand."""

from __future__ import annotations

import torch

from fastsnn_core.testing import conformance
from fastsnn_objective_first_spike import FirstSpike

test_first_spike = conformance("first_spike")


def test_the_first_spike_counts_and_never_is_last():
    spikes = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    assert FirstSpike().read(spikes).tolist() == [[-1.0, 0.0, -3.0]]
    torch.testing.assert_close(
        FirstSpike(scale=2.0).loss(spikes, torch.tensor([0])), -torch.tensor([[-0.5, 0.0, -1.5]]).log_softmax(1)[:, 0]
    )


def test_a_late_right_class_is_pulled_forward():
    spikes = torch.zeros(1, 4, 2)
    spikes[0, 3, 0], spikes[0, 0, 1] = 1.0, 1.0
    spikes.requires_grad_()
    FirstSpike().loss(spikes, torch.tensor([0])).sum().backward()
    assert spikes.grad[0, :3, 0].max() < 0  # more output before its first spike lowers the loss
    assert spikes.grad[0, 0, 1] > 0
