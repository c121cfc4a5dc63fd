"""Counts of rows in 16 bits, in one pass: `fastsnn_integer.fused_row_ops.narrowed` for rows that 8 bits do not hold."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from fastsnn_integer.fused_row_ops import LARGER, LIMIT
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.numba_runtime import Threaded, flat, workers

MOST, SUM = np.float32(LARGER), np.int64(LIMIT)


@Threaded
def _narrow_rows(counts, rows, size, out, state, nw):  # type: ignore[no-untyped-def]
    """Every worker's share; `state`: is there a row whose counts or whose Σ|c| are too large, or NaN?"""
    for worker in prange(nw):
        odd = 0
        for row in range(worker * rows // nw, (worker + 1) * rows // nw):
            at, total = U(row * size), np.int64(0)
            for i in range(U(size)):
                c = counts[at + i]
                odd += not (abs(c) <= MOST)
                out[at + i] = np.int16(c)
            for i in range(U(size)):
                total += abs(np.int64(out[at + i]))
            odd += total >= SUM
        state[worker, 0] = odd


def narrow_rows(counts: Tensor) -> Tensor:
    """Float counts ``[N, D]`` in 16 bits where those and the sums of products hold them, else as they are."""
    rows, size = counts.shape
    nw = workers()
    out, state = torch.empty(rows, size, dtype=torch.int16), np.zeros((nw, 8), np.int64)
    _narrow_rows.on(nw, flat(counts), rows, size, flat(out), state)
    return counts if state[:, 0].any() else out
