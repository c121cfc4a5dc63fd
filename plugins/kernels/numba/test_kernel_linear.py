"""Integer linear layers in Numba against the naive twins: equal sums, whichever way they go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastsnn_events
from fastsnn_core import SpikeTensor, ops
from fastsnn_events import linear
from fastsnn_kernel_numba import integer_linear

quick = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
FLOATS = {torch.float32: 2**24, torch.float64: 2**53}


@st.composite
def cases(draw):
    torch.manual_seed(draw(st.integers(0, 99)))
    rows = draw(st.sampled_from([0, 1, 1, 2, 5, 31, 32, 70]))
    wide = draw(st.sampled_from([0, 1, 2, 7, 8, 9, 17, 100, 700]))
    tall = draw(st.sampled_from([0, 1, 3, 64, 100, 4097]))
    largest = draw(st.sampled_from([0, 1, 3, 40, 127, 128, 255, 256, 40_000, 2**24, 2**31 - 1, 2**44]))
    kinds = [k for k in (torch.int8, torch.int16, torch.int32, torch.int64) if largest <= torch.iinfo(k).max]
    kind = draw(st.sampled_from(kinds + [k for k, most in FLOATS.items() if largest <= most]))
    counts = torch.randint(-largest, largest + 1, (rows, wide))
    pattern = draw(st.sampled_from(["sparse", "dense", "equal", "one input", "bursts"]))
    if pattern == "sparse":
        counts[torch.rand(rows, wide) < draw(st.sampled_from([0.5, 0.9]))] = 0
    elif pattern == "equal":
        counts = torch.full_like(counts, largest)
    elif pattern == "one input":
        counts[:, 1:] = 0
    elif pattern == "bursts":
        counts[torch.rand(rows, wide) < 0.99] = 1
    weight = torch.randint(-128, 128, (tall, wide), dtype=torch.int8)
    if draw(st.booleans()):
        weight = torch.full_like(weight, draw(st.sampled_from([-128, 127])))
    if draw(st.integers(0, 3)):
        weight = fastsnn_events.input_major(weight)
    return counts.to(kind), weight


def poison():
    from fastsnn_kernel_numba import numba_runtime

    for array in vars(numba_runtime._kept).values():
        array.fill(0x5A)


@quick
@given(cases())
def test_counts(case):
    counts, weight = case
    poison()
    found = linear.COUNT_LINEAR("cpu", counts, weight)
    assert ops.paths()["count_linear"].startswith("numba")
    assert found.dtype == torch.int64
    assert torch.equal(found, linear.count_linear_naive(counts, weight))


@quick
@given(cases(), st.booleans())
def test_events_in_any_order_and_more_than_once(case, twice):
    counts, weight = case
    index = counts.reshape(-1).nonzero()[:, 0]
    weights = counts.reshape(-1)[index].to(torch.int64)
    if twice:
        index, weights = torch.cat((index, index)), torch.cat((weights, -3 * weights))
    order = torch.randperm(len(index))
    poison()
    args = (index[order], weights[order], len(counts), weight)
    assert torch.equal(linear.EVENT_LINEAR("cpu", *args), linear.event_linear_naive(*args))


def test_counts_at_the_ends_of_every_integer_type():
    """-2^31 has no absolute value in 32 bits; as a digit it is what is left of -2^38 and -2^45."""
    weight = torch.tensor([[-61, 123], [67, -25], [-119, 83]], dtype=torch.int8)
    for c in [s * 2**n + d for n in range(6, 52) for s in (-1, 1) for d in (-1, 0, 1)]:
        counts = torch.tensor([[c, 1], [0, c]])
        for w in (weight, fastsnn_events.input_major(weight)):
            assert torch.equal(linear.COUNT_LINEAR("cpu", counts, w), linear.count_linear_naive(counts, w)), c
        assert torch.equal(integer_linear.dense_product(counts, weight), linear.count_linear_naive(counts, weight)), c


def test_events_are_refused_where_a_row_is_too_large_not_where_all_rows_are():
    counts = torch.full((70, 700), 2**44)
    weight = fastsnn_events.input_major(torch.full((3, 700), 127, dtype=torch.int8))
    index = torch.arange(counts.numel())
    args = (index, 4 * counts.flatten(), 70, weight)
    assert torch.equal(linear.EVENT_LINEAR("cpu", *args), linear.event_linear_naive(*args))
    assert torch.equal(linear.EVENT_LINEAR("cpu", *args), linear.COUNT_LINEAR("cpu", 4 * counts, weight))
    for run in (linear.event_linear_naive, lambda *a: linear.EVENT_LINEAR("cpu", *a)):
        with pytest.raises(OverflowError, match="64 bits"):
            run(index, 8 * counts.flatten(), 70, weight)


def test_few_events_skip_and_many_do_not():
    weight = fastsnn_events.input_major(torch.ones(8, 64, dtype=torch.int8))
    one = torch.ones(1, 64, dtype=torch.int32)
    fastsnn_events.count_linear(SpikeTensor(one), weight)
    assert ops.paths()["count_linear"] == "numba: events"
    fastsnn_events.count_linear(SpikeTensor(one), weight.contiguous())
    assert ops.paths()["count_linear"] == "numba: dense"
    fastsnn_events.count_linear(SpikeTensor(one.expand(64, 64)), weight)
    assert ops.paths()["count_linear"] == "numba: dense"
    few = torch.eye(64, dtype=torch.int32)
    assert torch.equal(fastsnn_events.count_linear(SpikeTensor(few), weight), torch.ones(64, 8, dtype=torch.int64))
    assert ops.paths()["count_linear"] == "numba: events"
    fastsnn_events.event_linear(SpikeTensor(one), weight)
    assert ops.paths()["event_linear"] == "numba: events"
    fastsnn_events.count_linear(SpikeTensor(one), weight.to(torch.int16))
    assert ops.paths()["count_linear"] == "naive"


@pytest.mark.parametrize("layout", [fastsnn_events.input_major, torch.Tensor.contiguous])
@pytest.mark.parametrize("kernel", ["naive", "numba"])
def test_fractions_and_sums_beyond_64_bits_are_refused(kernel, layout):
    weight = layout(torch.ones(3, 2, dtype=torch.int8))
    with ops.use(kernel):
        for kind in (torch.float32, torch.float64, torch.bfloat16):
            with pytest.raises(ValueError, match="whole numbers"):
                fastsnn_events.count_linear(SpikeTensor(torch.tensor([[0.5, 1.0]], dtype=kind)), weight)
            with pytest.raises(ValueError, match="whole numbers"):
                fastsnn_events.count_linear(SpikeTensor(torch.tensor([[float("nan"), 300.0]], dtype=kind)), weight)
        for huge in (2**56, 2**62, -(2**63)):
            with pytest.raises(OverflowError, match="do not fit the 64 bits"):
                fastsnn_events.count_linear(SpikeTensor(torch.tensor([[huge, 1]])), weight)


@pytest.mark.parametrize("largest", [100, 12_345])
def test_one_input_and_a_burst_on_one_input(largest):
    """With one input torch's INT8 product returns memory that it never wrote."""
    counts = torch.full((40, 1), largest)
    weight = torch.randint(-128, 128, (30, 1), dtype=torch.int8)
    assert torch.equal(linear.COUNT_LINEAR("cpu", counts, weight), linear.count_linear_naive(counts, weight))
    counts = torch.ones(40, 300, dtype=torch.int64)
    counts[3, 5] = largest
    weight = torch.randint(-128, 128, (30, 300), dtype=torch.int8)
    assert torch.equal(linear.COUNT_LINEAR("cpu", counts, weight), linear.count_linear_naive(counts, weight))


@pytest.mark.parametrize("largest", [113, 70_001])
def test_where_the_int8_product_is_not_trusted_float32_is_exact(monkeypatch, largest):
    from fastsnn_events import byte_product
    from fastsnn_kernel_numba import integer_linear

    monkeypatch.setattr(byte_product, "trusted", lambda: False)
    counts = torch.full((20, 3000), largest)
    counts[:, ::700] -= 2
    weight = torch.full((5, 3000), -127, dtype=torch.int8)  # odd, so that sums beyond 2^24 would be rounded
    assert torch.equal(integer_linear.dense_product(counts, weight), linear.count_linear_naive(counts, weight))


@pytest.mark.parametrize("rows", [0, 1, 5, 40])
@pytest.mark.parametrize("largest", [1, 127, 3000, 10**6])
@pytest.mark.parametrize("each", [True, False])
def test_numbers_behind_the_sums(rows, largest, each):
    torch.manual_seed(rows)
    counts = torch.randint(-largest, largest + 1, (rows, 48)).float() * (torch.rand(rows, 48) < 0.5)
    weight = fastsnn_events.input_major(torch.randint(-127, 128, (33, 48), dtype=torch.int8))
    scale, v = torch.rand(33), torch.rand(rows if each else 1, 1)
    found = []
    for kernel in ("naive", "numba"):
        with ops.use(kernel):
            found.append(linear.COUNT_PROJECT("cpu", counts, weight, scale, v))
    assert found[0].dtype == found[1].dtype == torch.float32
    assert torch.equal(*found)


def test_the_break_even_is_measured_once_per_shape_and_both_ways_agree(monkeypatch):
    weight = integer_linear.input_major(torch.randint(-127, 128, (1024, 1024), dtype=torch.int8))
    calls, measure = [], integer_linear.measure_break_even
    monkeypatch.setattr(integer_linear, "_measured", {})
    monkeypatch.setattr(integer_linear, "measure_break_even", lambda rows, w: calls.append(rows) or measure(rows, w))
    found = [integer_linear.break_even(rows, weight) for rows in (5, 6, 8)]
    assert calls == [8]
    assert found[0] == found[1] == found[2]
    assert 1 <= found[0] <= integer_linear.FEW
    assert (
        integer_linear.break_even(1, weight)
        == integer_linear.break_even(9, weight[:8])
        == integer_linear.EVENTS_PER_INPUT
    )
    counts = (torch.rand(8, 1024) < 0.5).float()
    sums = {}
    for limit, way in ((1.0, "numba: dense"), (32.0, "numba: events")):
        monkeypatch.setattr(integer_linear, "_measured", dict.fromkeys(integer_linear._measured, limit))
        sums[way] = integer_linear.count_linear(counts, weight)
        assert ops.paths()["count_linear"] == way
    assert torch.equal(*sums.values())


@pytest.mark.parametrize(("whole", "wanted"), [(5.0, 4.0), (2.5, 1.5), (0.5, 1.0), (900.0, 32.0)])
def test_the_break_even_is_where_the_two_ways_take_as_long(monkeypatch, whole, wanted):
    """On a clock of our own: events take 1 + (events per input), every weight once takes `whole`."""
    now = [0.0]

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(integer_linear.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(integer_linear, "event_gemm", lambda c, w, limit: wait(1 + float(c.sum()) / c.shape[1]))
    monkeypatch.setattr(integer_linear, "dense_product", lambda c, w: wait(whole))
    weight = torch.zeros(1, 20_000, dtype=torch.int8)
    assert integer_linear.measure_break_even(8, weight) == pytest.approx(wanted, rel=0.05)
