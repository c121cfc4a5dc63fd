"""Time folded into the batch, layers that pass spikes on, convolutions of spikes, and what probes record of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion import spike_layers
from fastsnn_conversion.time_folding import TimeFoldedSite, name_states, run_time_folded
from fastsnn_core import SpikeTensor
from fastsnn_core.probe import probe
from fastsnn_leaky.neurons import Leaky


def leaky() -> Leaky:
    return Leaky(beta=0.5, threshold=0.3, lo=-4.0, hi=4.0)


class Net(nn.Module):
    """Spikes over all of ``[C, H]`` and then over each ``[D]``."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.site = TimeFoldedSite(leaky(), channels)
        name_states(self)

    def forward(self, x, state=None, reset=None):
        return run_time_folded(self.site, (x,), (3,), state, reset)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_folded_site_is_its_neuron_over_time(channels):
    x = torch.randn(3, 5, 2, 4)
    y, state = Net(channels)(x)
    for p in range(2 if channels == 1 else 1):
        rows = x[:, :, p] if channels == 1 else x.flatten(2)
        wanted, v = leaky()(rows)
        got = y[:, :, p] if channels == 1 else y.flatten(2)
        assert torch.equal(got, wanted.value())
        assert torch.equal(state["site"][:, p] if channels == 1 else state["site"], v)


@pytest.mark.parametrize("channels", [1, 2])
def test_pieces_with_carried_state_are_the_whole(channels):
    net, x = Net(channels), torch.randn(2, 6, 2, 3)
    whole, end = net(x)
    state, rows = None, []
    for piece in x.split([1, 3, 2], 1):
        y, state = net(piece, state)
        rows.append(y)
    assert torch.equal(torch.cat(rows, 1), whole)
    assert torch.equal(state["site"], end["site"])


@pytest.mark.parametrize("channels", [1, 2])
def test_a_reset_starts_a_new_sequence(channels):
    net, x = Net(channels), torch.randn(2, 6, 2, 3)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[:, 4] = True
    assert torch.equal(net(x, None, reset)[0][:, 4:], net(x[:, 4:])[0])


def test_without_time_there_is_one_step():
    net, x = Net(), torch.randn(4, 2, 3)
    assert torch.equal(net(x)[0], net(x[:, None])[0][:, 0])
    assert net(x[:0])[0].shape == (0, 2, 3)


def test_inputs_of_other_ranks_are_refused():
    with pytest.raises(ValueError, match=r"inputs have shapes \(2, 3\); dimensions expected: 3 \(or 4, with time\)"):
        Net()(torch.randn(2, 3))
    with pytest.raises(ValueError, match="spikes over 2 dimensions, got shape"):
        TimeFoldedSite(leaky(), 2)(torch.randn(2, 3))


def spikes(*shape: int) -> SpikeTensor:
    counts = torch.randint(-7, 8, shape).double()
    return SpikeTensor(counts, torch.rand(shape[0], *[1] * (len(shape) - 1), dtype=torch.float64) + 0.1)


@pytest.mark.parametrize(
    ("layer", "plain"),
    [
        (spike_layers.Flatten(), lambda x: x.flatten(1)),
        (spike_layers.MaxPool(2, 2, 2), lambda x: F.max_pool2d(x, 2)),
        (spike_layers.MaxPool(2, 3, 1, 1), lambda x: F.max_pool2d(x, 3, 1, 1)),
        (spike_layers.AvgPool(2, 2, 2), lambda x: F.avg_pool2d(x, 2)),
        (spike_layers.AvgPool(2, (3, 2), (1, 2), (1, 1)), lambda x: F.avg_pool2d(x, (3, 2), (1, 2), (1, 1))),
        (spike_layers.AdaptiveAvgPool(2, (3, 2)), lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
        (spike_layers.Dropout(0.5).eval(), lambda x: x),
        (nn.Identity(), lambda x: x),
    ],
    ids=lambda v: type(v).__name__,
)
def test_passing_layers_keep_spikes_whole_and_their_value(layer, plain):
    s = spikes(2, 3, 6, 6)
    out = layer(s)
    assert isinstance(out, SpikeTensor)
    assert torch.equal(out.counts, out.counts.round())
    torch.testing.assert_close(out.value(), plain(s.value()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(s.value()), plain(s.value()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pad", [0, 1])
def test_pools_of_one_and_three_dimensions(pad):
    s = spikes(2, 3, 8)
    torch.testing.assert_close(spike_layers.AvgPool(1, 4, 2, pad)(s).value(), F.avg_pool1d(s.value(), 4, 2, pad))
    assert torch.equal(spike_layers.MaxPool(1, 2, 2)(s).counts, F.max_pool1d(s.counts, 2))
    s = spikes(2, 3, 4, 4, 4)
    torch.testing.assert_close(spike_layers.AvgPool(3, 2, 2)(s).value(), F.avg_pool3d(s.value(), 2))


def test_a_window_needs_one_threshold():
    s = SpikeTensor(torch.ones(1, 1, 4, 4), torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match="max pooling of spikes needs one threshold per window"):
        spike_layers.MaxPool(2, 2, 2)(s)
    flat = spike_layers.Flatten()(s)
    assert torch.equal(flat.value(), s.value().flatten(1))
    with pytest.raises(ValueError, match="are not equal"):
        spike_layers.AdaptiveAvgPool(2, (3, 3))(spikes(1, 1, 4, 4))


def test_dropout_drops_whole_counts():
    torch.manual_seed(0)
    s = spikes(4, 50)
    out = spike_layers.Dropout(0.25).train()(s)
    assert torch.equal(out.counts, out.counts.round())
    kept = out.counts != 0
    torch.testing.assert_close(out.value()[kept], s.value()[kept] / 0.75)
    assert 0.6 < float(kept.double().sum() / (s.counts != 0).double().sum()) < 0.9


@pytest.mark.parametrize(
    ("function", "weight", "shape"),
    [
        (F.conv1d, (5, 2, 3), (2, 2, 9)),
        (F.conv2d, (5, 2, 3, 3), (2, 2, 7, 7)),
        (F.conv_transpose2d, (2, 5, 3, 3), (2, 2, 7, 7)),
        (F.conv_transpose1d, (2, 5, 3), (2, 2, 9)),
    ],
)
def test_convolutions_of_spikes(function, weight, shape):
    """On counts, exact; the train replayed slot by slot gives the same integers."""
    s = spikes(*shape)
    w, b = torch.randn(weight, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(function(s, w, b, 2, 1), function(s.value(), w, b, 2, 1), rtol=1e-12, atol=1e-12)
    whole = torch.randint(-127, 128, weight).double()
    ones = SpikeTensor(s.counts, torch.ones((), dtype=torch.float64))
    magnitude = s.counts.abs().to(torch.int64)
    slots = [(((magnitude >> p) & 1) * s.counts.sign()).double() for p in range(3)]
    assert torch.equal(function(ones, whole, None), sum(2**p * function(slot, whole) for p, slot in enumerate(slots)))
    mixed = SpikeTensor(s.counts, torch.rand(shape, dtype=torch.float64))
    torch.testing.assert_close(function(mixed, w, b), function(mixed.value(), w, b), rtol=1e-12, atol=1e-12)


def test_a_threshold_per_channel_of_one_sample_stays_inside_the_sum():
    s = SpikeTensor(torch.ones(3, 5, 5), torch.arange(1.0, 4.0).reshape(3, 1, 1))  # [C, H, W], no batch
    w = torch.randn(2, 3, 3, 3)
    torch.testing.assert_close(F.conv2d(s, w), F.conv2d(s.value(), w))


class Block(nn.Module):
    """Makes spikes inside, hands them through a pool, and returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.pool, self.flat = TimeFoldedSite(leaky(), 3), spike_layers.MaxPool(2, 2, 2), nn.Identity()

    def forward(self, x):
        return self.flat(self.pool(self.inner(x)))


def test_no_spike_is_recorded_twice():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), Block())
    for _ in range(2):
        with probe(model) as trace:
            model(torch.randn(2, 1, 6, 6))
            model(torch.randn(2, 1, 6, 6))
        assert list(trace) == ["1.inner"]
        assert trace["1.inner"].spikes.shape == (2, 1, 32)
