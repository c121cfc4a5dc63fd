"""Dense products with ternary weights: exact at every edge, with the instructions of AVX2 and VNNI and without them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numba import njit

from fastsnn_kernel_numba import ternary_dense
from fastsnn_kernel_numba.dense_pairs import AVX2, VNNI, _split_counts
from fastsnn_kernel_numba.ternary_events import SUMS, _tile_column
from fastsnn_kernel_numba.ternary_tile import TERNARY_TILE

WIDTH = 4 * SUMS + 8  # sums of a row
KINDS = sorted({(False, False), (AVX2, False), (AVX2, VNNI)})


def at(array):
    return array.ctypes.data


@njit
def multiply(address, inputs, stride, column, tiles, counts, rows, codes, out, width, spare):
    ternary_dense._multiply_ternary_tiles(
        address, inputs, stride, column, tiles, counts, rows, codes, out, width, spare
    )


def split(counts):
    """Counts in 8 bits, and which of them have become events, of rows; on memory full of ones."""
    rows, size = counts.shape
    low = np.full((rows, -(-size // 32) * 32), -1, np.int8)
    index, count = np.full(size + 1, -1, np.int32), np.full(size + 1, -1, np.int32)
    for r in range(rows):
        _split_counts(counts[r], size, low[r], index, count)
    return low


@pytest.mark.parametrize("seed", range(int(os.environ.get("FASTSNN_ROUNDS", "60"))))
def test_exact(seed):
    """Any bytes, also those that nobody writes; what lies beside the sums stays."""
    draw = np.random.default_rng(seed)
    inputs, rows, tiles = int(draw.integers(1, 700)), int(draw.integers(1, 12)), int(draw.integers(1, 5))
    stride = TERNARY_TILE * tiles + int(draw.integers(-31, 40))
    stride = max(stride, TERNARY_TILE)
    column = int(draw.integers(0, max(1, stride - TERNARY_TILE * tiles + 1)))
    weight = draw.integers(0, 256, (inputs, stride)).astype(np.uint8)
    if seed % 3 == 0:
        weight[:] = draw.choice([0xFF, 0xAA, 0])
    largest = draw.choice([1, 3, 20, 127, 1000])
    counts = draw.integers(-largest, largest + 1, (rows, inputs)).astype(np.int32)
    if seed % 6 == 0:  # as much as a lane may hold, all of one sign
        counts[:] = 0
        counts[:, ::4] = 15 * draw.choice([-1, 1])
    low = split(counts)
    codes, spare = np.full(ternary_dense.CODES, -1, np.int8), np.zeros(SUMS, np.int32)
    out = draw.integers(-(2**30), 2**30, (rows, WIDTH)).astype(np.int32)
    wanted, places = out.copy(), np.array([at(row) for row in low], np.int64)
    multiply(at(weight), inputs, stride, column, tiles, places, rows, at(codes), at(out), WIDTH, at(spare))
    for t in range(tiles):
        begin = _tile_column(column, t, stride)
        tile = weight[:, begin : begin + TERNARY_TILE]
        u = np.concatenate([(tile >> shift) & 3 for shift in (0, 2, 4, 6)], 1).astype(np.int64)
        wanted[:, SUMS * t : SUMS * (t + 1)] += (low[:, :inputs].astype(np.int64) @ u).astype(np.int32)
    assert np.array_equal(out, wanted)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_instructions_are_the_equation(kind):
    two = ternary_dense.ternary_products(2, *kind)

    @njit
    def run(codes, counts, other, out, more, chunks):
        two(codes, (counts, other), (out, more), chunks)

    draw = np.random.default_rng(0)
    for _ in range(20):
        chunks = int(draw.integers(1, 9))
        codes = draw.integers(0, 256, (32 * chunks // 4, 8, 4)).astype(np.uint8)
        low = split((draw.choice([-1, 1], (2, 32 * chunks)) * draw.integers(0, 16, (2, 32 * chunks))).astype(np.int32))
        out = np.ones((2, SUMS), np.int32)
        run(at(codes), at(low[0]), at(low[1]), at(out[0]), at(out[1]), chunks)
        wanted = np.ones((2, SUMS), np.int32)
        for r in range(2):
            for q in range(4):
                u = (codes >> 2 * q & 3).astype(np.int64)
                sums = np.einsum("fci,fi->c", u, low[r].reshape(-1, 4).astype(np.int64))
                first = TERNARY_TILE * q
                wanted[r, first : first + 4] += sums[:4].astype(np.int32)
                wanted[r, first + 16 : first + 20] += sums[4:].astype(np.int32)
        assert np.array_equal(out, wanted)
