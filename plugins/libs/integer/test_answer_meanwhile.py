"""What answers while kernels compile: the bits of the naive twins."""

from __future__ import annotations

import sys

import pytest
import torch

from fastsnn_events import byte_product, exact_floats
from fastsnn_events import samples as event_samples
from fastsnn_events.exact_floats import count_linear_in_floats
from fastsnn_events.linear import count_linear_naive
from fastsnn_integer import answer_meanwhile


@pytest.mark.parametrize("block", [exact_floats.BLOCK, 2100])
@pytest.mark.parametrize("largest", [3, 5000, 1 << 31, 1 << 40])
def test_floats_hold_the_sums_or_are_not_taken(largest, block, monkeypatch):
    """At 3 float32 is enough, at 5000 float64, at 2^40 neither; whole, and seven rows of weights at a time."""
    monkeypatch.setattr(exact_floats, "BLOCK", block)
    monkeypatch.setattr(byte_product, "trusted", lambda: False)
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(-largest, largest + 1, (5, 300), generator=draw)
    counts[0] = largest  # all weights of one sign at the edge of the range: the largest sum there is
    weight = torch.randint(-128, 128, (40, 300), generator=draw).to(torch.int8)
    weight[0] = -128
    assert torch.equal(count_linear_in_floats(counts, weight), count_linear_naive(counts, weight))


@pytest.mark.skipif(not byte_product.trusted(), reason="torch's INT8 product is not fast on this CPU")
@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
@pytest.mark.parametrize("largest", [127, 128, 127 * 128 - 1, 127 * 128])
def test_int8_products_hold_counts_of_two_digits(largest, kind, monkeypatch):
    """The edges of one digit and of two, against weights of one sign; one more goes through floats."""
    taken = []
    product = byte_product.multiply_bytes
    monkeypatch.setattr(byte_product, "multiply_bytes", lambda *a: taken.append(len(a[0])) or product(*a))
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(-largest, largest + 1, (3, 301), generator=draw)
    counts[0], counts[1] = largest, -largest
    weight = torch.randint(-128, 128, (301, 41), generator=draw).to(torch.int8).T
    weight[0], weight[1] = -128, 127
    assert torch.equal(count_linear_in_floats(counts.to(kind), weight), count_linear_naive(counts, weight))
    assert taken == {127: [3], 128: [6], 127 * 128 - 1: [6], 127 * 128: []}[largest]


def test_the_samples_of_the_operator():
    for counts, weight in event_samples.count_linear():
        assert torch.equal(count_linear_in_floats(counts, weight), count_linear_naive(counts, weight))
    empty = count_linear_in_floats(torch.zeros(0, 4), torch.zeros(3, 4, dtype=torch.int8))
    assert empty.shape == (0, 3)
    with pytest.raises(ValueError, match="whole numbers"):
        count_linear_in_floats(torch.tensor([[0.5]]), torch.ones(1, 1, dtype=torch.int8))
    with pytest.raises(OverflowError, match="64 bits"):
        count_linear_in_floats(torch.tensor([[2.0**60]]), torch.full((1, 1), 127, dtype=torch.int8))


def test_threads_in_the_background_give_way_until_the_last_has_ended():
    usual = sys.getswitchinterval()
    with answer_meanwhile.in_background():
        assert sys.getswitchinterval() == pytest.approx(answer_meanwhile.TURN)
        with pytest.raises(KeyError), answer_meanwhile.in_background():
            raise KeyError
        assert sys.getswitchinterval() == pytest.approx(answer_meanwhile.TURN)
    assert sys.getswitchinterval() == pytest.approx(usual)
    first, second = answer_meanwhile.in_background(), answer_meanwhile.in_background()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # the one that began first ends first
    assert sys.getswitchinterval() == pytest.approx(answer_meanwhile.TURN)
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(usual)
