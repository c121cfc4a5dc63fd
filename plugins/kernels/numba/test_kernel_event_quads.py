"""Sums of events by fours of weight rows: those of the definition, whatever lay in memory before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsnn_kernel_numba.machine import VNNI_512

if not VNNI_512:
    pytest.skip("this processor has no VNNI of 512 bits", allow_module_level=True)

from fastsnn_kernel_numba.event_quads import EIGHT, WIDE_COLUMNS, _accumulate_eights
from fastsnn_kernel_numba.numba_runtime import compile


@compile
def sums_of(weight, index, count, span, tall, column, n, acc, sums, oo):  # type: ignore[no-untyped-def]
    first, end = span
    at = weight.ctypes.data
    _accumulate_eights(at, index, count, first, end, tall, column, n, acc.ctypes.data, sums, oo)


def agree(seed, inputs, tall, column, n, span, counts):
    """Events first … end of the counts, onto columns column … column + n."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (inputs, tall), dtype=np.int8)
    index = np.sort(rng.choice(inputs, len(counts), replace=False)).astype(np.int32)
    count = np.array(counts, np.int32)
    acc = np.full(-(-n // WIDE_COLUMNS) * WIDE_COLUMNS, -1, np.int32)
    sums, oo = np.full(n + 5, 7, np.int32), 3
    sums_of(weight.reshape(-1), index, count, span, tall, column, n, acc, sums, oo)
    first, end = span
    rows = weight[index[first:end], column : column + n].astype(np.int64)
    wanted = (count[first:end, None].astype(np.int64) * rows).sum(0)
    assert (sums[oo : oo + n] == wanted).all()
    assert (sums[:oo] == 7).all()
    assert (sums[oo + n :] == 7).all()


@given(
    st.integers(0, 1 << 30), st.integers(WIDE_COLUMNS, 300), st.integers(0, 70), st.integers(1, 40), st.data()
)  # fmt: skip
def test_sums_are_the_definition(seed, n, column, events, data):
    rng = np.random.default_rng(seed)
    most = data.draw(st.sampled_from([1, 7, 127, 128, 5000]))
    counts = rng.integers(-most, most + 1, events)
    first = data.draw(st.integers(0, events - 1))
    end = data.draw(st.integers(first + 1, events))
    agree(seed, events + 9, column + n + data.draw(st.integers(0, 9)), column, n, (first, end), counts.tolist())


@pytest.mark.parametrize("n", [64, 65, 127, 128, 190])
@pytest.mark.parametrize("events", [1, EIGHT - 1, EIGHT, EIGHT + 1, 5 * EIGHT + 3])
def test_edges(n, events):
    agree(events, events + 2, n, 0, n, (0, events), [127 if i % 2 else -127 for i in range(events)])


def test_bursts_are_added_by_themselves_and_the_others_once():
    agree(1, 30, 100, 0, 100, (0, 24), [*range(1, 9), 128, *[1] * 7, *[-3] * 7, -(1 << 20)])


def test_sums_beyond_32_bits_on_the_way_come_back():
    """Σ c (w + 128) leaves 32 bits, the sum itself does not."""
    agree(2, 1 << 18, 64, 0, 64, (0, 1 << 18), [127] * (1 << 18))
