"""The conformance kit over this plugin."""

import torch

from fastsnn_core.testing import conformance
from fastsnn_neuron_adaptive_threshold import AdaptiveThreshold

test_adaptive_threshold = conformance("adaptive_threshold")


def test_the_short_way_gives_the_counts_and_gradients_of_the_long_one():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 17) * torch.rand(2, 5, 1) * 30
    outs = []
    for spec in (AdaptiveThreshold(), AdaptiveThreshold(limit=2**31 - 1)):
        leaf = x.clone().requires_grad_()
        spikes, _ = spec.build(17)(leaf)
        (spikes.counts * torch.arange(17)).sum().backward()
        outs.append((spikes.counts.detach(), spikes.scale, leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
