"""Operators of core against their definitions, and how an implementation is chosen."""

from __future__ import annotations

import pytest
import torch

import fastsnn_events
from fastsnn_core import SpikeTensor, ops


def test_use_forces_and_paths_tell():
    spikes, weight = SpikeTensor(torch.tensor([[1.0]])), torch.ones(1, 1, dtype=torch.int8)
    with ops.use("naive"):
        fastsnn_events.count_linear(spikes, weight)
        assert ops.paths()["count_linear"] == "naive"
    with pytest.raises(LookupError, match="no kernel set 'nosuch'"), ops.use("nosuch"):
        fastsnn_events.count_linear(spikes, weight)


def test_integers_must_be_whole():
    with pytest.raises(ValueError, match="whole numbers"):
        fastsnn_events.count_linear(SpikeTensor(torch.tensor([[0.5]])), torch.ones(1, 1, dtype=torch.int8))
