"""The conformance kit over this plugin, and the budget that its counts keep."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core.testing import conformance
from fastsnn_neuron_adaptive_max import AdaptiveMax

test_adaptive_max = conformance("adaptive_max")


def heavy(rows: int = 64, width: int = 33) -> torch.Tensor:
    """Tokens over four orders of magnitude, with outliers."""
    x = torch.randn(1, rows, width, generator=torch.Generator().manual_seed(0)) ** 5
    return x * torch.logspace(-2, 2, rows)[:, None]


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_counts_fit_their_steps_and_reach_the_last(steps: int) -> None:
    spikes, _ = AdaptiveMax(steps=steps).build(33)(heavy())
    largest = spikes.counts.abs().amax(-1)
    assert float(largest.max()) == float(largest.min()) == 2**steps - 1
    v = heavy().abs().amax(-1, keepdim=True) / (2**steps - 1)
    assert torch.equal(spikes.counts, (heavy() / v).round())


@pytest.mark.parametrize("clip", [1.0, 0.7])
def test_no_more_channels_burst_than_may(clip: float) -> None:
    most = 2**3 - 1
    spikes, _ = AdaptiveMax(steps=3, burst=2, clip=clip).build(33)(heavy())
    beyond = (spikes.counts.abs() > most).sum(-1)
    assert int(beyond.max()) == 2
    order = heavy().abs().argsort(-1, descending=True)
    ranks = spikes.counts.abs().gather(-1, order)
    assert torch.equal(ranks[..., 2:].amax(-1), torch.full((1, 64), float(most)))


def test_burst_leaves_one_channel_at_least() -> None:
    spikes, _ = AdaptiveMax(steps=2, burst=9).build(2)(torch.tensor([[[1.0, 30.0]]]))
    assert spikes.counts.tolist() == [[[3.0, 90.0]]]


def test_silence_stays_silent() -> None:
    spikes, _ = AdaptiveMax(steps=4, burst=1).build(5)(torch.zeros(1, 2, 5))
    assert not spikes.counts.any()


def test_lsq_gradient_of_clip() -> None:
    x = heavy(8)
    module = AdaptiveMax(steps=2, clip=0.6, learn_clip=True).build(33).double()
    x = x.double()
    spikes, _ = module(x)
    (spikes.value().sum()).backward()
    v = 0.6 * x.abs().amax(-1, keepdim=True) / 3
    u = x / v
    clamped = u.abs() > 3
    assert 0 < int(clamped.sum()) < u.numel()
    wanted = ((u.clamp(-3, 3).round() - u.masked_fill(clamped, 0.0)) * v / 0.6).sum()
    assert torch.allclose(module.clip.grad, wanted)
