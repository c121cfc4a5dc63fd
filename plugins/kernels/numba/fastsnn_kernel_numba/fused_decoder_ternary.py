"""Ternary weights in the fused step: a row's events onto the tiles of a task, by additions of pairs.

The arithmetic is `fastsnn_integer.ternary`: exact sums, then the scale; like 4-bit products they go to `w.dots`. A task
is a range of bytes of every weight row (`fastsnn_kernel_numba.ternary_events`). Rows whose sums need 64 bits are added
weight by weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.nn import functional

from fastsnn_core.lowering import MatrixForm
from fastsnn_integer.forms import TernaryForm, inputs, outputs
from fastsnn_integer.ternary import unpack_ternary
from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.deterministic import F
from fastsnn_kernel_numba.fused_decoder_four_bits import MOST_BYTES
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import INT32, UINT8
from fastsnn_kernel_numba.numba_runtime import compile
from fastsnn_kernel_numba.ternary_events import PAIR_LIST, SUMS, _add_tiles_of_events, _tile_column
from fastsnn_kernel_numba.ternary_tile import QUARTERS, TERNARY_TILE

TERNARY_GROUP = -1  # `group` of a ternary matrix
TERNARY_BYTES = 2 * MOST_BYTES * 8 // (4 * SUMS) * TERNARY_TILE  # of a task: its sums fit a worker's `acc_64`


@compile
def _ternary_dots(w, m, total, c, skip, sums, a):  # type: ignore[no-untyped-def]
    """float(sum) · scale of a tile's outputs from its lane `skip` on, to their places in `w.dots`."""
    quarter, off = (m.outputs + QUARTERS - 1) // QUARTERS, np.int32(total)
    for q in range(QUARTERS):
        first = q * quarter + c
        n = min(TERNARY_TILE, quarter - c, m.outputs - first)
        o, d, s = U(m.sums + first), U(m.scale + first), U(a + q * TERNARY_TILE)
        for j in range(U(skip), U(max(n, skip))):
            w.dots[o + j] = F(sums[s + j] - off) * w.constants[d + j]


@compile
def _ternary_wide(w, m, column, n, stride):  # type: ignore[no-untyped-def]
    """A task whose sums need 64 bits."""
    quarter, weight = (m.outputs + QUARTERS - 1) // QUARTERS, view(m.address, m.inputs * stride, UINT8)
    for q in range(QUARTERS):
        for c in range(column, min(column + n, quarter)):
            o = q * quarter + c
            if o >= m.outputs:
                continue
            total, shift = np.int64(0), np.uint8(2 * q)
            for k in range(w.row[0].events):
                code = (weight[U(np.int64(w.index[k]) * stride + c)] >> shift) & np.uint8(3)
                total += np.int64(w.count[k]) * (np.int64(code) - 1)
            w.dots[U(m.sums + o)] = F(total) * w.constants[U(m.scale + o)]


@compile
def _accumulate_ternary(w, task, worker):  # type: ignore[no-untyped-def]
    """One task of a projection with ternary weights: `w.dots` of the outputs of its bytes."""
    t = w.tasks[task]
    m, events = w.matrices[t.matrix], w.row[0].events
    stride = max((m.outputs + QUARTERS - 1) // QUARTERS, TERNARY_TILE)
    if w.row[0].wide:
        _ternary_wide(w, m, t.column, t.columns, stride)
        return
    tiles, at = (t.columns + TERNARY_TILE - 1) // TERNARY_TILE, w.acc_64.ctypes.data + 16 * MOST_BYTES * worker
    sums, total = view(at, tiles * SUMS, INT32), np.int64(0)
    for j in range(U(tiles * SUMS)):
        sums[j] = 0
    for k in range(U(events)):
        total += w.count[k]
    lists = w.lists.ctypes.data + 16 * PAIR_LIST * worker
    _add_tiles_of_events(m.address, w.index, w.count, 0, events, stride, t.column, tiles, lists, at)
    for i in range(tiles):
        c = _tile_column(t.column, i, stride)
        _ternary_dots(w, m, total, c, t.column + i * TERNARY_TILE - c, sums, i * SUMS)


def ternary_projections(tables: Any, matrices: list[TernaryForm]) -> tuple[list[int], tuple[int, int]]:
    """`Tables.projection` of ternary matrices: tasks are bytes of rows, which have those of a tile at least."""
    rows, begin, sums, tables.ternary = [], len(tables.tasks), 0, True
    for m in matrices:
        codes = m.weight.contiguous()
        if codes.shape[1] < TERNARY_TILE:
            codes = functional.pad(codes, (0, TERNARY_TILE - codes.shape[1]))
        stride = codes.shape[1]
        tables.held.append(codes)
        tables.inputs = max(tables.inputs, inputs(m))
        rows.append(len(tables.matrices))
        tables.matrices.append(
            {"address": codes.data_ptr(), "outputs": outputs(m), "tall": outputs(m), "inputs": inputs(m),
             "scale": tables.constant(m.scale), "bias": tables.constant(m.bias), "sums": sums, "parts": 1,
             "group": TERNARY_GROUP, "scales": 0, "minimums": 0}
        )  # fmt: skip
        step = min(TERNARY_BYTES, -(-stride // (TERNARY_TILE * tables.workers)) * TERNARY_TILE)
        for column in range(0, stride, step):
            columns = min(step, stride - column)
            tables.tasks.append({"matrix": rows[-1], "column": column, "columns": columns, "part": 0})
        sums += outputs(m)
    tables.sums = max(tables.sums, sums)
    return rows, (begin, len(tables.tasks))


def eight_bits(m: MatrixForm) -> MatrixForm:
    """A ternary matrix as an INT8 one, whose bits are the same; for what is too small to gain by it."""
    if not isinstance(m, TernaryForm):
        return m
    return MatrixForm(unpack_ternary(m.weight, outputs(m)).contiguous().T, m.scale, m.bias, m.layer)
