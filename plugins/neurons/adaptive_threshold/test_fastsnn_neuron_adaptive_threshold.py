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


def test_an_exported_graph_silences_the_same_channels(monkeypatch):
    """Where `torch.export` looks, `top` and `v_min` stay tensors; of equals the first channels spike, as ever."""
    x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0)).mul(4).round() / 4  # with equals, and zeros
    for top, dead_zone, v_min in ((0, 0.8, 1e-5), (3, 0.0, 0.3), (12, 1.0, 1e-5), (40, 0.0, 0.3), (1, 0.6, 2.0)):
        module = AdaptiveThreshold(top=top, dead_zone=dead_zone, v_min=v_min).build(12)
        with monkeypatch.context() as patch:
            wanted = module(x)[0]
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            found = module(x)[0]
        assert torch.equal(found.counts, wanted.counts)
        assert torch.equal(found.scale, wanted.scale)
