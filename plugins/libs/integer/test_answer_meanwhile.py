"""What answers while kernels compile: the bits of the naive twins."""

from __future__ import annotations

import pytest
import torch

from fastsnn_events import exact_floats
from fastsnn_events import samples as event_samples
from fastsnn_events.exact_floats import count_linear_in_floats
from fastsnn_events.linear import count_linear_naive
from fastsnn_integer import answer_meanwhile, deterministic, samples


@pytest.mark.parametrize("block", [exact_floats.BLOCK, 2100])
@pytest.mark.parametrize("largest", [3, 5000, 1 << 31, 1 << 40])
def test_floats_hold_the_sums_or_are_not_taken(largest, block, monkeypatch):
    """At 3 float32 is enough, at 5000 float64, at 2^40 neither; whole, and seven rows of weights at a time."""
    monkeypatch.setattr(exact_floats, "BLOCK", block)
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(-largest, largest + 1, (5, 300), generator=draw)
    counts[0] = largest  # all weights of one sign at the edge of the range: the largest sum there is
    weight = torch.randint(-128, 128, (40, 300), generator=draw).to(torch.int8)
    weight[0] = -128
    assert torch.equal(count_linear_in_floats(counts, weight), count_linear_naive(counts, weight))


def test_the_samples_of_the_operator():
    for counts, weight in event_samples.count_linear():
        assert torch.equal(count_linear_in_floats(counts, weight), count_linear_naive(counts, weight))
    empty = count_linear_in_floats(torch.zeros(0, 4), torch.zeros(3, 4, dtype=torch.int8))
    assert empty.shape == (0, 3)
    with pytest.raises(ValueError, match="whole numbers"):
        count_linear_in_floats(torch.tensor([[0.5]]), torch.ones(1, 1, dtype=torch.int8))
    with pytest.raises(OverflowError, match="64 bits"):
        count_linear_in_floats(torch.tensor([[2.0**60]]), torch.full((1, 1), 127, dtype=torch.int8))


@pytest.mark.parametrize("room", [1 << 22, 40])
def test_attention_by_keys_is_the_definition(monkeypatch, room):
    monkeypatch.setattr(answer_meanwhile, "ROOM", room)
    for sample in samples.attend():
        assert torch.equal(answer_meanwhile.attend_by_keys(*sample), deterministic.attend_naive(*sample))
