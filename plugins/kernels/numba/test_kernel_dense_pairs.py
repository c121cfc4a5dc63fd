"""Dense products by pairs of inputs: exact at every edge, with the instructions of AVX2 and VNNI and without them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numba import njit

from fastsnn_kernel_numba import dense_pairs as dense

generic, pairs = dense.product_tile(4, avx2=False), dense.product_tile(4, avx2=dense.AVX2)


WIDE = 128  # columns of the sums


@njit
def multiply(weight, at, inputs, tall, column, n, counts, rows, panel, panel_at, out_at, spare):
    for first in range(0, inputs, dense.PIECE):
        for g in range((n + dense.GROUP - 1) // dense.GROUP):
            begin, columns = column + dense.GROUP * g, min(n - dense.GROUP * g, dense.GROUP)
            chunks = dense._pack_piece(weight, at, first, inputs, tall, begin, columns, panel, panel_at)
            to = out_at + 4 * dense.GROUP * g
            dense._multiply_piece(
                panel_at, columns, chunks, counts, first, rows, to, WIDE, spare, weight, begin, inputs, tall
            )


@njit
def all_three(panel, counts, a, b, c, chunks):
    dense._tile_4(panel, (counts, counts, counts, counts), (a, a + 128, a + 256, a + 384), chunks)
    generic(panel, (counts, counts, counts, counts), (b, b + 128, b + 256, b + 384), chunks)
    pairs(panel, (counts, counts, counts, counts), (c, c + 128, c + 256, c + 384), chunks)


def at(array):
    return array.ctypes.data


def split(counts):
    """Counts in 8 bits, remaining events and the sum of the rest, of rows; on memory full of ones."""
    rows, size = counts.shape
    low = np.full((rows, -(-size // 32) * 32), -1, np.int8)
    index, count = np.full((rows, size + 1), -1, np.int32), np.full((rows, size + 1), -1, np.int32)
    made = [dense._split_counts(counts[r], size, low[r], index[r], count[r]) for r in range(rows)]
    return low, index, count, made


@pytest.mark.parametrize("seed", range(int(os.environ.get("FASTSNN_ROUNDS", "60"))))
def test_exact(seed):
    draw = np.random.default_rng(seed)
    inputs, n, rows = int(draw.integers(1, 300)), int(draw.integers(1, WIDE)), int(draw.integers(1, 12))
    tall, column = n + int(draw.integers(0, 40)), 0
    column = int(draw.integers(0, tall - n + 1))
    weight = draw.integers(-128, 128, (inputs, tall)).astype(np.int8)
    if seed % 3 == 0:
        weight[:] = draw.choice([-128, 127])
    largest = draw.choice([1, 3, 20, 127, 128, 1000, 1 << 16])
    counts = draw.integers(-largest, largest + 1, (rows, inputs)).astype(np.int32)
    counts[draw.random((rows, inputs)) < draw.random()] = 0
    if seed % 6 == 0:  # all counts of one size and all weights at the edge: sums as large as 16 bits may hold
        counts[:], weight[:] = int(draw.integers(3, 6)) * draw.choice([-1, 1]), 127
    low, index, count, made = split(counts)
    panel, spare = np.full(dense.PANEL, -1, np.int8), np.zeros(dense.GROUP, np.int32)
    out = np.zeros((rows, WIDE), np.int32)
    places = np.array([at(low[r]) for r in range(rows)], np.int64)
    multiply(
        weight.reshape(-1), at(weight), inputs, tall, column, n, places, rows, panel, at(panel), at(out), at(spare)
    )
    found = out[:, :n].astype(np.int64)
    for r, (events, total) in enumerate(made):
        found[r] -= 128 * total
        for e in range(events):
            found[r] += int(count[r, e]) * weight[index[r, e], column : column + n].astype(np.int64)
    wanted = counts.astype(np.int64) @ weight[:, column : column + n].astype(np.int64)
    assert np.array_equal(found, wanted)


def test_events_are_the_fewest():
    counts = np.zeros((1, 64), np.int32)
    counts[0, [0, 1, 4, 5, 2, 3]] = 60, 60, 7, 1, 127, 1  # 128 of one lane and of the other
    counts[0, [32, 33]] = -128, 128
    low, index, count, made = split(counts)
    assert made[0] == (4, 1 + 60 + 7 + 1)
    assert index[0, :4].tolist() == [0, 2, 32, 33]
    assert count[0, :4].tolist() == [60, 127, -128, 128]
    assert low[0, [0, 1, 4, 5, 2, 3]].tolist() == [0, 60, 7, 1, 0, 1]


def test_without_the_instructions():
    draw = np.random.default_rng(0)
    for _ in range(20):
        panel = draw.integers(-128, 128, dense.TILE).astype(np.int8)
        counts = draw.choice([-1, 1], 128) * (draw.random(128) < 0.5) * 7
        low = split(counts.astype(np.int32)[None])[0]
        out, other, third = (np.ones((4, 32), np.int32) for _ in range(3))
        all_three(at(panel), at(low), at(out), at(other), at(third), 4)
        assert np.array_equal(out, other)
        assert np.array_equal(third, other)
        assert (out != 1).any()
