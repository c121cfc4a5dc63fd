"""One row of spikes, the short way: right for any number of workers on any memory; unusual rows are left to others."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastsnn_events
from fastsnn_core import ops
from fastsnn_events import linear
from fastsnn_kernel_numba import gemv_events, integer_linear, numba_runtime

quick = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
KINDS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.float32]


@st.composite
def rows(draw):
    torch.manual_seed(draw(st.integers(0, 99)))
    wide = draw(st.sampled_from([2, 3, 7, 8, 9, 17, 100, 700, 1500]))
    tall = draw(st.sampled_from([2, 3, 64, 100, 4096, 4097, 9000]))
    largest = draw(st.sampled_from([0, 1, 3, 40, 127, 128, 255, 256, 2**14]))
    kind = draw(st.sampled_from([k for k in KINDS if k.is_floating_point or largest <= torch.iinfo(k).max]))
    counts = torch.randint(-largest, largest + 1, (1, wide))
    counts[torch.rand(1, wide) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = 0
    if draw(st.booleans()):  # all in one corner, so that pieces of the inputs hold unequal numbers of events
        counts[:, wide // draw(st.sampled_from([2, 5])) :] = 0
    weight = torch.randint(-128, 128, (tall, wide), dtype=torch.int8)
    if draw(st.booleans()):
        weight.fill_(draw(st.sampled_from([-128, 127])))
    return counts.to(kind), fastsnn_events.input_major(weight)


def poisoned(monkeypatch, workers, start):
    """`start` kernels as that many workers, on fresh memory full of NaN."""
    for array in vars(numba_runtime._kept).values():
        array.view("u1").fill(0xFF)
    monkeypatch.setattr(gemv_events, "workers", lambda: workers)
    monkeypatch.setattr(gemv_events, "_team", start)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).view(torch.uint8).fill_(0xFF).view(k["dtype"]))


TEAM = gemv_events._team
STARTS = {
    "torch's threads": TEAM,
    "Numba's threads": lambda wanted, at: gemv_events._event_rows.parallel(at, wanted),
    "one does it all": lambda wanted, at: TEAM.alone.ctypes(at),
}


@pytest.mark.parametrize("start", STARTS)
@quick
@given(case=rows(), workers=st.sampled_from([1, 2, 3, 8]))
def test_any_number_of_workers(start, case, workers):
    counts, weight = case
    wanted = linear.count_linear_naive(counts, weight)
    scale, v = torch.rand(len(weight)), torch.rand(1, 1)
    with pytest.MonkeyPatch.context() as patch:
        poisoned(patch, workers, STARTS[start])
        found = gemv_events.product(counts, weight)
        numbers = gemv_events.product(counts, weight, scale, v)
    assert found.dtype == torch.int64
    assert torch.equal(found, wanted)
    assert torch.equal(numbers, wanted.float() * scale * v)


def test_what_is_set_to_0_follows_the_workers_not_the_size(monkeypatch):
    """A smaller row for more workers has more claims; one left from an earlier call would be waited for, for ever."""
    monkeypatch.setattr(gemv_events, "_own", threading.local())
    for workers in (2, 8, 3):
        head, at = gemv_events._scratch(1500 // workers, 9000 // workers, 4096, 2, workers)
        assert len(head) == gemv_events.HEAD + gemv_events.LINE * gemv_events.PHASES * (2 + workers)
        assert at == head.ctypes.data
        assert at % 64 == 0


def test_calls_of_one_row_take_it(monkeypatch):
    weight = fastsnn_events.input_major(torch.randint(-128, 128, (40, 30), dtype=torch.int8))
    counts = torch.randint(-3, 4, (1, 30)).float()
    scale, v = torch.rand(40), torch.rand(1, 1)
    seen, product = [], gemv_events.product
    monkeypatch.setattr(gemv_events, "product", lambda *a: seen.append(product(*a)) or seen[-1])
    monkeypatch.setattr(integer_linear, "event_gemm", None)
    index = counts[0].nonzero()[:, 0]
    wanted = linear.count_linear_naive(counts, weight)
    assert torch.equal(linear.COUNT_LINEAR("cpu", counts, weight), wanted)
    assert torch.equal(linear.EVENT_LINEAR("cpu", index, counts[0, index], 1, weight), wanted)
    assert torch.equal(linear.COUNT_PROJECT("cpu", counts, weight, scale, v), wanted.float() * scale * v)
    assert len(seen) == 3
    assert all(out is not None for out in seen)
    assert "only rows of weights that spiked" in ops.dispatch.reasons()["count_linear"]


def test_without_an_openmp_that_torch_shares_numbas_threads_do_it(monkeypatch):
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(numba_runtime, "torch_pool", lambda: None)
        monkeypatch.setattr(gemv_events, "_team", numba_runtime.Team(gemv_events._enter, gemv_events._event_rows))
        weight = fastsnn_events.input_major(torch.randint(-128, 128, (40, 30), dtype=torch.int8))
        counts = torch.randint(-3, 4, (1, 30))
        assert torch.equal(gemv_events.product(counts, weight), linear.count_linear_naive(counts, weight))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", [torch.float32, torch.int32, torch.int64])
def test_unusual_rows_are_left_to_others(kind):
    weight = fastsnn_events.input_major(torch.full((5, 3000), -128, dtype=torch.int8))
    counts = torch.zeros(1, 3000).to(kind)
    most = gemv_events.BOUND - 1
    counts[0, 17], counts[0, 2900] = most - 2, 2
    assert torch.equal(gemv_events.product(counts, weight), linear.count_linear_naive(counts, weight))
    counts[0, 2900] = -3  # sums of 2^31 do not fit 32 bits
    assert gemv_events.product(counts, weight) is None
    assert torch.equal(linear.COUNT_LINEAR("cpu", counts, weight), linear.count_linear_naive(counts, weight))
    odd = [float("nan"), float("inf"), 0.5, -1e30] if kind == torch.float32 else [torch.iinfo(kind).min]
    for c in odd:
        counts[0, 17], counts[0, 2900] = c, 0
        assert gemv_events.product(counts, weight) is None
    assert gemv_events.product(counts.expand(2, -1)[:1].t().contiguous().t(), weight.contiguous()) is None
    assert gemv_events.product(torch.zeros(1, 6000).to(kind)[:, ::2], weight) is None
    assert gemv_events.product(torch.zeros(1, 3000, dtype=torch.float64), weight) is None
