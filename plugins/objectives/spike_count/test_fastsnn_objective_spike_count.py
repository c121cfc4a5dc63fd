"""The conformance kit over this plugin; counts by hand."""

from __future__ import annotations

import torch

from fastsnn_core.testing import conformance
from fastsnn_objective_spike_count import SpikeCount

test_spike_count = conformance("spike_count")


def test_counts_by_hand():
    spikes = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])  # 3 and 1 of 4 steps
    y = torch.tensor([0])
    assert SpikeCount().read(spikes).tolist() == [[3.0, 1.0]]
    torch.testing.assert_close(SpikeCount().loss(spikes, y), -torch.tensor([[3.0, 1.0]]).log_softmax(1)[:, 0])
    found = SpikeCount(how="mse", correct=0.5, wrong=0.0).loss(spikes, y)
    torch.testing.assert_close(found, torch.tensor([((0.75 - 0.5) ** 2 + 0.25**2) / 2]))


def test_groups_vote():
    spikes = torch.tensor([[[1.0, 1.0, 0.0, 1.0]]])
    assert SpikeCount(groups=2).read(spikes).tolist() == [[2.0, 1.0]]
