"""Gate-first: where gates shut exactly, only the outputs of `up` behind open gates are computed.

    h_j = act(g_j) · (Σ_i c_i w_ji · s_j · V + b_j)        0 where act(g_j) = 0, whatever the rest is

`up` is kept output-major, too, so that an open channel is one dot product of a contiguous row with the counts. Sums are
whole numbers: the bits are those of the full computation.
"""

from __future__ import annotations

import numpy as np

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.deterministic import ZERO, F, _apply
from fastsnn_kernel_numba.fused_decoder_stages import _dequantise
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.layout import INT8
from fastsnn_kernel_numba.numba_runtime import compile, prefetch

SMALL = np.int32(32767)


@compile
def _narrow_counts(w, size):  # type: ignore[no-untyped-def]
    """The counts of a row in 16 bits, input by input, and whether all of them fit."""
    fits = True
    for i in range(U(size)):
        fits &= (w.counts[i] <= SMALL) & (w.counts[i] >= -SMALL)
        w.narrow[i] = np.int16(w.counts[i])
    w.row[0].small = np.int64(fits) & np.int64(w.row[0].wide == 0)


@compile
def _shut_gates(w, layer, at, n):  # type: ignore[no-untyped-def]
    """Gates below their thresholds are 0."""
    row = w.layers[layer]
    if row.least >= 0:
        least = U(row.least) + at
        for i in range(U(n)):
            if abs(w.hidden[at + i]) < w.constants[least + i]:
                w.hidden[at + i] = ZERO


@compile
def _open_gates(w, layer, first, n):  # type: ignore[no-untyped-def]
    """act(gate) of hidden channels first … first + n; how many are open (NaN is)."""
    row, at, opened = w.layers[layer], U(first), np.int64(0)
    _dequantise(w, row.gate, first, n, w.z, at)
    _apply(w.z, at, U(n), row.activation, w.hidden, at)
    _shut_gates(w, layer, at, n)
    for i in range(U(n)):
        opened += np.int64(w.hidden[at + i] != ZERO)
    return opened


@compile
def _multiply_up(w, layer, first, n):  # type: ignore[no-untyped-def]
    """Gates times all of `up`, by its sums."""
    row, at = w.layers[layer], U(first)
    _dequantise(w, row.up, first, n, w.z, at)
    if row.up_relu:
        for i in range(U(n)):
            w.z[at + i] = ZERO if w.z[at + i] < ZERO else w.z[at + i]
    for i in range(U(n)):
        w.hidden[at + i] = w.hidden[at + i] * w.z[at + i]


@compile
def _next_open(y, j, end):  # type: ignore[no-untyped-def]
    """The first place from `j` on, before `end`, where y is not 0; `end` for none."""
    while j < end and y[j] == ZERO:
        j += 1
    return j


@compile
def _up_of_open_gates(w, layer, first, n):  # type: ignore[no-untyped-def]
    """Gates times `up` of the open channels alone, each a dot product of its weights with the counts."""
    row, v, f, end = w.layers[layer], w.threshold[0], w.constants, first + n
    up = w.matrices[row.up]
    wide = up.inputs
    weight = view(row.up_rows, up.outputs * wide, INT8)
    j = _next_open(w.hidden, first, end)
    while j < end:
        soon = _next_open(w.hidden, j + 1, end)
        if soon < end:
            for line in range(soon * wide, soon * wide + wide, 64):
                prefetch(weight, line)
        total, a = np.int32(0), U(j * wide)
        for i in range(U(wide)):
            total = np.int32(total + np.int32(w.narrow[i]) * np.int32(weight[a + i]))
        y = F(total) * f[U(up.scale + j)] * v
        if up.bias >= 0:
            y = y + f[U(up.bias + j)]
        if row.up_relu and y < ZERO:
            y = ZERO
        w.hidden[j] = w.hidden[j] * y
        j = soon
