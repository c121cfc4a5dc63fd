"""SpikeTensor: views, torch's protocol, packing, sparsities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fastsnn_core import SpikeTensor, ops
from fastsnn_core.errors import FastSNNError


def example() -> SpikeTensor:
    counts = torch.tensor([[[0.0, 2.0, -3.0], [1.0, 0.0, 0.0]]])
    return SpikeTensor(counts, torch.tensor([[[0.5], [2.0]]]))


def test_value_is_counts_times_scale():
    assert example().value().tolist() == [[[0.0, 1.0, -1.5], [2.0, 0.0, 0.0]]]


def test_linear_scales_once_and_adds_the_bias_once():
    s, w, b = example(), torch.randn(4, 3), torch.randn(4)
    torch.testing.assert_close(F.linear(s, w, b), F.linear(s.value(), w, b))
    layer = torch.nn.Linear(3, 4)
    torch.testing.assert_close(layer(s), layer(s.value()))


def test_a_scale_per_channel_stays_inside_the_sum():
    s = SpikeTensor(torch.ones(2, 3), torch.tensor([1.0, 2.0, 4.0]))
    assert F.linear(s, torch.ones(1, 3)).tolist() == [[7.0], [7.0]]


def test_it_behaves_like_a_tensor_where_asked():
    s = example()
    assert s.shape == (1, 2, 3)
    assert (s.ndim, s.size(-1), s.numel(), len(s)) == (3, 3, 6, 1)
    torch.testing.assert_close(s + 1, s.value() + 1)
    torch.testing.assert_close(1 - s, 1 - s.value())
    torch.testing.assert_close(torch.ones(1, 2, 3) * s, s.value())
    torch.testing.assert_close(torch.relu(s), s.value().relu())
    torch.testing.assert_close(s[:, :1], s.value()[:, :1])
    assert s.to(torch.float64).dtype == torch.float64
    assert s.pack().to(torch.float64).counts.dtype == torch.int8


def test_gradients_pass_through_counts():
    x = torch.tensor([[0.3, -1.7]], requires_grad=True)
    spikes = SpikeTensor(ops.count(x / 0.5, -9, 9, slope=torch.ones_like), torch.tensor(0.5))
    F.linear(spikes, torch.tensor([[2.0, 3.0]])).sum().backward()
    assert x.grad.tolist() == [[2.0, 3.0]]


@given(st.lists(st.integers(-300, 300), max_size=12))
def test_events_are_the_counts(row):
    counts = torch.tensor(row, dtype=torch.int64).reshape(-1, 2 if len(row) % 2 == 0 else 1)
    spikes = SpikeTensor(counts)
    assert torch.equal(spikes.event().counts.to(torch.int64), counts)
    assert len(spikes.event().index) == int((counts != 0).sum())


def test_packing_takes_the_smallest_type_and_never_wraps():
    assert SpikeTensor(torch.tensor([127.0])).pack().counts.dtype == torch.int8
    assert SpikeTensor(torch.tensor([128.0])).pack().counts.dtype == torch.int16
    assert SpikeTensor(torch.tensor([-40000.0])).pack().counts.dtype == torch.int32
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        SpikeTensor(torch.tensor([3e9], dtype=torch.float64)).pack()
    with pytest.raises(ValueError, match="not whole"):
        SpikeTensor(torch.tensor([0.5])).pack()


def test_three_sparsities_by_name():
    found = SpikeTensor(torch.tensor([[0, 1, -3, 4]])).sparsity()
    assert found.silent_fraction == 0.25
    assert found.spikes_per_channel == (0 + 1 + 2 + 1) / 4  # binary digits that are 1
    assert found.steps == 3
    assert found.slot_sparsity == 1 - 1.0 / 3
    assert found.mean_count == 2.0
    assert found.largest == 4


def test_a_wrong_view_says_what_to_call():
    with pytest.raises(ValueError, match=r"\.dense\(coder\)"):
        _ = example().train
    with pytest.raises(ValueError, match=r"\.event\(\)"):
        _ = example().index
    with pytest.raises(ValueError, match="as many weights"):
        SpikeTensor.from_train(torch.zeros(3, 2), torch.ones(2))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("counts", [torch.tensor([[301.0, 257.0]]), torch.tensor([[70000, 301]], dtype=torch.int32)])
def test_another_type_of_the_value_leaves_the_counts(counts, kind):
    moved = SpikeTensor(counts, torch.tensor(0.5)).to(kind)
    assert moved.dtype == kind
    assert moved.counts.dtype == counts.dtype
    assert torch.equal(moved.counts, counts)


def test_the_smallest_integers_have_a_magnitude():
    assert SpikeTensor(torch.tensor([-128], dtype=torch.int8)).largest() == 128
    assert SpikeTensor(torch.tensor([-(2**31)], dtype=torch.int32)).largest() == 2**31
    found = SpikeTensor(torch.tensor([[-128, 3]], dtype=torch.int8)).sparsity()
    assert (found.largest, found.mean_count) == (128, 65.5)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([[0.5], [0.25]]), torch.rand(3) + 0.5])
def test_a_loader_makes_batches_of_spikes(scale):
    from torch.utils.data import DataLoader, default_collate

    rows = [SpikeTensor(torch.randint(-3, 4, (2, 3)), scale * (i + 1)) for i in range(4)]
    batch, labels = next(iter(DataLoader([(s, i) for i, s in enumerate(rows)], batch_size=4)))
    assert isinstance(batch, SpikeTensor)
    assert labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(batch.counts, torch.stack([s.counts for s in rows]))
    assert torch.equal(batch.value(), torch.stack([s.value() for s in rows]))
    assert batch.scale.numel() == 4 * scale.numel()  # not one for each channel where one for each token was
    train = SpikeTensor.from_train(torch.ones(2, 2, 3, dtype=torch.int8), torch.tensor([1, 2]))
    mixed = default_collate([rows[0], train])  # another form, and another shape of scale
    assert torch.equal(mixed.value(), torch.stack([rows[0].value(), train.value()]))
    with pytest.raises(FastSNNError, match=r"shapes \(2, 3\), \(4,\) do not make a batch; pad or cut them"):
        default_collate([rows[0], SpikeTensor(torch.ones(4))])
