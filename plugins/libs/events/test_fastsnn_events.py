"""The event runtime alone: what a coder's helpers promise, and what refuses."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import SpikeTensor
from fastsnn_events import switch_runtime
from fastsnn_events.coder_helpers import extremes, whole_counts


def test_counts_must_be_whole():
    assert whole_counts(SpikeTensor(torch.tensor([3.0, -2.0])))[0].tolist() == [3, -2]
    with pytest.raises(ValueError, match="whole"):
        whole_counts(SpikeTensor(torch.tensor([0.5])))


def test_a_model_without_sites_has_no_event_runtime():
    with pytest.raises(ValueError, match="no spike sites"):
        switch_runtime(torch.nn.Linear(2, 2), "event")
    with pytest.raises(ValueError, match="count and event"):
        switch_runtime(torch.nn.Linear(2, 2), "both")


def test_extremes_of_no_counts():
    assert extremes(torch.zeros(0, dtype=torch.int64)) == (0, 0)
