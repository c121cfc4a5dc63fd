"""Convolutions of counts: every way gives the bits of the definition, for any window, density, workers and memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsnn_core.ops.dispatch import path_of, reasons, use
from fastsnn_events.count_conv import COUNT_CONV, ConvWindow, count_conv_naive, event_major
from fastsnn_kernel_numba import conv_events, numba_runtime

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def convolutions(draw):
    """Counts, weights, scale, threshold and window."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    inside, outside = draw(st.sampled_from([1, 2, 5])), draw(st.sampled_from([1, 3, 8, 33]))
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    plain = draw(st.booleans())
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    stride, dilation = ((1, 1), (1, 1)) if plain else (draw(pairs), draw(pairs))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    least = [max(1, d * (k - 1) + 1 - 2 * a) for k, a, d in zip(size, padding, dilation)]
    image = [n + draw(st.integers(0, 6)) for n in least]
    shape = (draw(st.sampled_from([1, 1, 3])), groups * inside, *image)
    share, largest = draw(st.sampled_from([0.0, 0.01, 0.5, 1.0])), draw(st.sampled_from([1, 1, 3, 300]))
    counts = torch.randint(1, largest + 1, shape, generator=generator).float()
    counts *= (torch.rand(shape, generator=generator) < share).float()
    counts *= torch.randint(0, 2, shape, generator=generator) * 2 - 1 if draw(st.booleans()) else 1
    weight = torch.randint(-128, 128, (groups * outside, inside, *size), generator=generator).to(torch.int8)
    scale = torch.rand(len(weight), generator=generator) + 0.01
    threshold = torch.rand(draw(st.sampled_from([1, shape[0]])), generator=generator) + 0.1
    return counts, event_major(weight), scale, threshold, ConvWindow(stride, padding, dilation, groups)


def poison(patch, workers):
    """So many workers, on memory full of NaN."""
    for array in vars(numba_runtime._kept).values():
        array.view("u1").fill(0xFF)
    patch.setattr(conv_events, "workers", lambda: workers)
    empty = torch.empty

    def full(*args, **options):
        found = empty(*args, **options)
        return found.fill_(float("nan") if found.is_floating_point() else 77)

    patch.setattr(torch, "empty", full)


@quick
@given(case=convolutions(), workers=st.sampled_from([1, 2, 3]))
def test_events_windows_and_floats_are_the_definition(case, workers):
    counts, weight, *_ = case
    wanted = count_conv_naive(*case)
    reach = int(counts.abs().max()) * int(weight.int().abs().sum((1, 2, 3)).max())
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, workers)
        assert torch.equal(conv_events.conv_by_events(*case), wanted)
        if reach < 1 << 15:
            assert torch.equal(conv_events.conv_by_events(*case, narrow=True), wanted)
        assert torch.equal(conv_events.conv_of_windows(*case), wanted)
        assert torch.equal(conv_events.count_conv(*case), wanted)
    if reach < conv_events.IN_FLOAT32:
        assert torch.equal(conv_events.conv_in_float32(*case), wanted)


def drawn(share, most=1, kind=torch.float32):
    generator = torch.Generator().manual_seed(3)
    counts = (torch.rand(1, 16, 20, 20, generator=generator) < share) * most
    weight = torch.randint(-127, 128, (32, 16, 3, 3), generator=generator).to(torch.int8)
    return counts.to(kind), event_major(weight), torch.ones(32), torch.ones(1), ConvWindow(padding=(1, 1))


def test_measured_density_chooses_and_says_so(monkeypatch):
    for limit, share, wanted in ((0.2, 0.0, "events"), (0.2, 0.1, "events"), (0.2, 0.5, "dense"), (0.05, 0.1, "dense")):
        monkeypatch.setattr(conv_events, "_measured_share", lambda *_, limit=limit: limit)
        monkeypatch.setattr(conv_events, "_found", {})
        case = drawn(share)
        assert torch.equal(COUNT_CONV("cpu", *case), count_conv_naive(*case))
        assert path_of("count_conv") == f"numba: {wanted}"
        assert f"{100 * float(case[0].mean()):.1f}%" in reasons()["count_conv"]
        assert f"{limit:.1%}" in reasons()["count_conv"]


@pytest.mark.parametrize("limit", [2.0, 0.0], ids=["events", "dense"])
def test_sums_as_large_as_16_24_and_32_bits_hold_and_one_more(limit, monkeypatch):
    monkeypatch.setattr(conv_events, "conv_break_even", lambda *_: limit)
    for most in (2**15 // (127 * 9) + 1, 2**24 // (127 * 9), 2**24 // (127 * 9) + 20, 2**31 // (127 * 9) + 20, 2**36):
        counts = (most - torch.arange(16) % 3).float().view(1, 1, 4, 4)
        weight = event_major(
            torch.full((2, 1, 3, 3), 127, dtype=torch.int8) - torch.arange(2)[:, None, None, None].char()
        )
        case = counts, weight, torch.ones(2), torch.ones(1), ConvWindow(padding=(1, 1))
        assert torch.equal(COUNT_CONV("cpu", *case), count_conv_naive(*case)), most


def test_unusual_counts_are_left_to_the_definition():
    for odd in (0.5, float("nan"), float("inf"), -1e30):
        case = drawn(0.1)
        case[0][0, 3, 2, 1] = odd
        assert conv_events.count_conv(*case) is NotImplemented
        with pytest.raises((ValueError, OverflowError), match=r"whole|fit"):
            COUNT_CONV("cpu", *case)
    case = drawn(0.3, 2**30, torch.int64)
    assert conv_events.count_conv(*case) is NotImplemented
    assert torch.equal(COUNT_CONV("cpu", *case), count_conv_naive(*case))
    for kind in (torch.int8, torch.int64, torch.float64):
        case = drawn(0.3, 2, kind)
        with use("naive"):
            wanted = COUNT_CONV("cpu", *case)
        assert torch.equal(COUNT_CONV("cpu", *case), wanted)
    case = drawn(0.1)
    assert torch.equal(COUNT_CONV("cpu", case[0][:0], *case[1:]), torch.zeros(0, 32, 20, 20))
    for window, says in (
        (ConvWindow(groups=3), "groups"),
        (ConvWindow(stride=(0, 1)), "stride"),
        (ConvWindow((1, 1), (0,)), "padd"),
    ):
        with pytest.raises(ValueError, match=says):
            COUNT_CONV("cpu", *case[:4], window)
    with pytest.raises(ValueError, match="does not fit"):
        COUNT_CONV("cpu", case[0][:, :, :1], *case[1:4], ConvWindow())


def test_a_convolution_that_is_no_sum_of_products_is_not_taken(monkeypatch):
    """A transform of the numbers (Winograd's, say) rounds: the shape is tried once, and another way is taken."""
    right = conv_events.conv_in_float32
    monkeypatch.setattr(conv_events, "conv_in_float32", lambda *a: right(*a) + 0.25)
    monkeypatch.setattr(conv_events, "_found", {})
    case = drawn(1.0)
    assert torch.equal(COUNT_CONV("cpu", *case), count_conv_naive(*case))
