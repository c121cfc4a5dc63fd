"""Hypothesis strategies of the kit's inputs: small signals and spike arrays, and cuts of a sequence.

Spikes are drawn as arrays, not as seeds, so that a counterexample shrinks to one spike.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn


@st.composite
def signals(draw: DrawFn, *shape: int) -> torch.Tensor:
    """Small real inputs ``[B,T,D]`` in float64: a few drawn values, so that they shrink to almost nothing."""
    size = int(np.prod(shape))
    row = draw(st.lists(st.integers(-8, 8), min_size=size, max_size=size))
    jitter = torch.linspace(0.0, 0.37, size, dtype=torch.float64)
    return (torch.tensor(row, dtype=torch.float64) / 3 + jitter).reshape(shape)


@st.composite
def cuts(draw: DrawFn, length: int) -> list[int]:
    """Piece lengths that add up to `length`."""
    marks = sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=4))) if length > 1 else []
    edges = [0, *marks, length]
    return [b - a for a, b in itertools.pairwise(edges) if b > a]


@st.composite
def spike_arrays(draw: DrawFn, signed: bool = True, largest: int = 300) -> torch.Tensor:
    """Small integer count arrays."""
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    size = int(np.prod(shape))
    low = -largest if signed else 0
    row = draw(st.lists(st.integers(low, largest), min_size=size, max_size=size))
    return torch.tensor(row, dtype=torch.int64).reshape(shape)
