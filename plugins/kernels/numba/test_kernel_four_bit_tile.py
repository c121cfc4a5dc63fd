"""Tiles of 4-bit weights: exact at every edge, with the machine's instructions and without; groups, rows, zeros."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from numba import njit

from fastsnn_integer.four_bits import encode_four_bits, pack_codes, project_naive
from fastsnn_kernel_numba import four_bit_tile as tile
from fastsnn_kernel_numba.four_bit_linear import product_of_four_bits

ROUNDS = int(os.environ.get("FASTSNN_ROUNDS", "12"))


def runner(*kind):
    """A tile as a function of Python."""
    one = tile.group_tile(*kind)

    @njit
    def run(weight, pairs, many, soon, scales, minimums, total, out, half):
        one(weight, pairs, many, soon, scales, minimums, total, out, half)

    return run


KINDS = [*itertools.product((1, 2), (True, False), (True, False), (False,), (tile.AVX2,), (tile.HALVES,))]
KINDS.append((2, True, True, True, tile.AVX2, tile.HALVES))
KINDS += [(2, True, True, False, False, False), (1, False, True, True, False, False)]


@njit
def listed(lists, at, half, counts):
    entries = 0
    for i in range(len(counts)):
        entries = tile._list_count(lists, at, entries, i * half, counts[i])
    return entries


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_tile_is_its_equation(kind):
    """Sums as large as 16 bits hold, counts of many entries, scales of all sizes and signs, silent groups."""
    vectors, minimum, halves = kind[:3]
    run, n, float_kind = runner(*kind), 32 * vectors, np.float16 if halves else np.float32
    for seed in range(ROUNDS):
        draw = np.random.default_rng(seed)
        inputs, half = int(draw.integers(1, 40)), n + int(draw.integers(0, 9))
        weight = draw.integers(0, 256, (inputs, half)).astype(np.uint8)
        counts = draw.integers(-20, 21, inputs) * (draw.random(inputs) < draw.random())
        if seed % 3 == 0:
            counts[:] = 0
            counts[draw.integers(inputs)] = draw.choice([-1, 1]) * (tile.ROOM - 1)
            weight[:] = 255
        assert np.abs(counts).sum() < tile.ROOM
        scales, minimums = (
            (draw.normal(size=2 * half) * draw.choice([1.0, 1e-7, 1e3])).astype(float_kind) for _ in range(2)
        )
        out = draw.normal(size=2 * half).astype(np.float32)
        codes = np.concatenate([weight & 15, weight >> 4], 1).astype(np.int64)
        sums, total = counts @ codes, int(counts.sum())
        d, m = scales.astype(np.float32), minimums.astype(np.float32)
        if minimum:
            part = sums.astype(np.float32) * d + np.float32(total) * m
        else:
            part = (sums - 8 * total).astype(np.float32) * d
        wanted = out + part
        for edge in (slice(n, half), slice(half + n, None)):  # what is beside the tile stays
            wanted[edge] = out[edge]
        lists = np.full(tile.LIST + 3, -1, np.int64)
        entries = listed(lists, 3, half, counts)
        at = [x.ctypes.data for x in (weight, lists, scales, minimums, out)]
        place = at[1] + 24
        run(at[0], place, (entries + 1) // 2, place, at[2], at[3], total, at[4], half)
        assert out.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_rows_and_groups_are_the_naive_ones(seed):
    """Widths around whole tiles and tasks, groups of any length, counts that 16 bits do not hold, signs of zeros."""
    draw = torch.Generator().manual_seed(seed)
    rows, wide, group = (int(torch.randint(1, most, (), generator=draw)) for most in (6, 700, 400))
    tall = int(torch.tensor([1, 63, 64, 127, 128, 129, 1100])[torch.randint(0, 7, (), generator=draw)])
    largest = (1, 9, 127, 128, 5000)[seed % 5]
    counts = torch.randint(-largest, largest + 1, (rows, wide), generator=draw).float()
    counts *= torch.rand(rows, wide, generator=draw) < 0.6
    counts[0] = 0
    for minimum in (True, False):
        made, d, m = encode_four_bits(torch.randn(tall, wide, generator=draw) * 0.1, group, minimum)
        given = counts, pack_codes(made), d, m, group
        assert product_of_four_bits(*given).numpy().tobytes() == project_naive(*given).numpy().tobytes()
