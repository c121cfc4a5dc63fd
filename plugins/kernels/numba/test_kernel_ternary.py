"""Ternary weights: tiles are their equation at every edge, with the machine's instructions and without; products are
the naive ones for any number of workers on any memory; unusual counts are left to the definition."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import njit

from fastsnn_integer import ternary
from fastsnn_integer.quantization import quantized_linear
from fastsnn_integer.ternary import PROJECT, pack_ternary, project_ternary_naive
from fastsnn_kernel_numba import numba_runtime, ternary_events, ternary_linear
from fastsnn_kernel_numba import ternary_tile as tile

ROUNDS = int(os.environ.get("FASTSNN_ROUNDS", "12"))
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
KINDS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.float32]


def tile_runner(*kind):
    """A tile as a function of Python."""
    one = tile.ternary_tile(*kind)

    @njit
    def run(weight, pairs, many, soon, soon_pairs, sums):
        one(weight, pairs, many, soon, soon_pairs, sums)

    return run


@pytest.mark.parametrize("kind", [*itertools.product((True, False), (tile.AVX2,)), (True, False)], ids=str)
def test_a_tile_is_its_equation(kind):
    """Any bytes, sums as large as 16 bits hold, counts of many entries, silent lists; what is beside it stays."""
    run, n = tile_runner(*kind), tile.TERNARY_TILE
    for seed in range(ROUNDS):
        draw = np.random.default_rng(seed)
        inputs, stride = int(draw.integers(1, 30)), n + int(draw.integers(0, 9))
        weight = draw.integers(0, 256, (inputs, stride)).astype(np.uint8)
        counts = (draw.integers(-30, 31, inputs) * (draw.random(inputs) < draw.random())).astype(np.int32)
        if seed % 3 == 0:
            counts[:], weight[:] = 0, 255
            counts[draw.integers(inputs)] = draw.choice([-1, 1]) * (tile.TERNARY_ROOM - 1)
        index, lists = np.flatnonzero(counts).astype(np.int32), np.full(600, -1, np.int64)
        at, rest, many = ternary_events._list_pairs(index, counts[index], 0, 0, len(index), stride, lists)
        assert (at, rest) == (len(index), 0)
        codes = np.concatenate([(weight[:, :n] >> shift) & 3 for shift in (0, 2, 4, 6)], 1).astype(np.int64)
        sums = draw.integers(-(2**30), 2**30, 4 * n + 2).astype(np.int32)
        wanted = sums.copy()
        wanted[1:-1] += (counts @ codes).astype(np.int32)
        pairs, begin = lists.ctypes.data, weight.ctypes.data
        run(begin, pairs, many, begin, pairs, sums.ctypes.data + 4)
        assert np.array_equal(sums, wanted)


@st.composite
def products(draw):
    torch.manual_seed(draw(st.integers(0, 99)))
    rows = draw(st.sampled_from([1, 1, 2, 7, 8, 9, 20]))
    wide = draw(st.sampled_from([1, 2, 7, 64, 127, 128, 129, 700]))
    tall = draw(st.sampled_from([1, 3, 4, 100, 127, 128, 129, 131, 512, 516, 1100, 4100]))
    largest = draw(st.sampled_from([0, 1, 3, 40, 127, 128, 255, 5000]))
    kind = draw(st.sampled_from([k for k in KINDS if k.is_floating_point or largest <= torch.iinfo(k).max]))
    counts = torch.randint(-largest, largest + 1, (rows, wide))
    counts[torch.rand(rows, wide) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = 0
    if draw(st.booleans()):  # a burst in one corner, and a row without events
        counts[:, wide // draw(st.sampled_from([2, 5])) :] = 0
        counts[-1] = 0
    codes = torch.randint(-1, 2, (tall, wide))
    if draw(st.booleans()):
        codes.fill_(draw(st.sampled_from([-1, 0, 1])))
    return counts.to(kind), codes, torch.rand(tall) + 0.01


def poison(monkeypatch, workers, start):
    """`start` kernels as that many workers, on memory full of NaN."""
    for array in vars(numba_runtime._kept).values():
        array.view("u1").fill(0xFF)
    monkeypatch.setattr(ternary_linear, "workers", lambda: workers)
    monkeypatch.setattr(ternary_linear, "_ternary_team", start)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


TEAM = ternary_linear._ternary_team
STARTS = {
    "torch's threads": TEAM,
    "Numba's threads": lambda wanted, at: ternary_linear._ternary_threads.parallel(at, wanted),
    "one does it all": lambda wanted, at: TEAM.alone.ctypes(at),
}


@pytest.mark.parametrize("start", STARTS)
@quick
@given(case=products(), workers=st.sampled_from([1, 2, 3, 8]))
def test_products_are_the_naive_ones_and_those_of_int8(start, case, workers):
    counts, codes, scale = case
    given_ = counts, pack_ternary(codes), scale
    wanted = project_ternary_naive(*given_)
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, workers, STARTS[start])
        found = ternary_linear.product_of_ternary(*given_)
    assert torch.equal(found, wanted)
    spikes = ternary.SpikeTensor(counts.float(), torch.ones(len(counts), 1))
    eight, _ = quantized_linear(spikes, codes.to(torch.int8), scale[:, None], 0)
    assert torch.equal(eight, wanted)


def test_unusual_counts_are_left_to_the_definition():
    codes = torch.ones(5, 3000)
    packed, scale = pack_ternary(codes), torch.ones(5)
    counts = torch.zeros(2, 3000)
    counts[0, 17], counts[1, 5] = 2**24 - 1, -(2**24 - 1)
    found = ternary_linear.product_of_ternary(counts, packed, scale)
    assert torch.equal(found, project_ternary_naive(counts, packed, scale))
    for odd in (2.0**24, float("nan"), float("inf"), 0.5, -1e30):
        counts[1, 5] = odd
        assert ternary_linear.product_of_ternary(counts, packed, scale) is NotImplemented
    counts[1, 5] = 2.0**40
    assert torch.equal(PROJECT("cpu", counts, packed, scale), project_ternary_naive(counts, packed, scale))
    counts[1, 5] = 0.5
    with pytest.raises(ValueError, match="whole"):
        PROJECT("cpu", counts, packed, scale)
    many = torch.full((1, 3000), 2.0**18)  # Σ|c| beyond 2^29
    assert ternary_linear.product_of_ternary(many, packed, scale) is NotImplemented
    assert ternary_linear.product_of_ternary(torch.zeros(0, 3000), packed, scale) is NotImplemented
    with pytest.raises(ValueError, match="bytes a row"):
        PROJECT("cpu", counts, packed[:, :1], scale)
