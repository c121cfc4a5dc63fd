"""Sample inputs of the operators in `linear`, on which the conformance kit compares kernels with the naive twins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Sample = tuple[Any, ...]


def random_counts(seed: int, rows: int, inputs: int, largest: int, share: float) -> Tensor:
    """Signed counts up to `largest`, of which `share` are not zero."""
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-largest, largest + 1, (rows, inputs), generator=draw)
    return drawn * (torch.rand(rows, inputs, generator=draw) < share)


def sample_weights(seed: int, tall: int, inputs: int) -> Tensor:
    """INT8 weights, input-major."""
    drawn = torch.randint(-128, 128, (inputs, tall), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.int8).T


def count_linear() -> Iterator[Sample]:
    """One row and many, few events and many, small counts and large, either layout of the weights."""
    for i, (rows, share, largest) in enumerate(((1, 0.1, 3), (1, 1.0, 300), (5, 0.2, 127), (40, 0.9, 40_000))):
        for kind in (torch.int32, torch.float32):
            yield random_counts(i, rows, 70, largest, share).to(kind), sample_weights(i, 50, 70)
        yield random_counts(i, rows, 33, largest, share).to(torch.int64), sample_weights(i, 50, 33).contiguous()


def count_project() -> Iterator[Sample]:
    """The same with a scale per output, and one threshold or one per row."""
    for i, (rows, share) in enumerate(((1, 0.2), (7, 0.5), (40, 0.9))):
        scale, draw = torch.linspace(0.01, 2, 50), torch.Generator().manual_seed(i)
        for shape in ((1, 1), (rows, 1)):
            c = random_counts(i, rows, 70, 100, share).float()
            yield c, sample_weights(i, 50, 70), scale, torch.rand(shape, generator=draw) + 0.1


def event_linear() -> Iterator[Sample]:
    """Events of one row and of several, in any order, some more than once."""
    for rows in (1, 6):
        draw = torch.Generator().manual_seed(rows)
        index = torch.randint(0, rows * 70, (90,), generator=draw)
        yield index, torch.randint(-4, 5, (90,), generator=draw), rows, sample_weights(rows, 50, 70)


def input_major() -> Iterator[Sample]:
    """Matrices of either layout."""
    yield (sample_weights(1, 50, 70),)
    yield (sample_weights(2, 9, 300).contiguous(),)
