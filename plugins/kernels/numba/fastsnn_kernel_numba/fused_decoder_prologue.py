"""What comes in front of a projection in the fused step: residual add, norm, spikes."""

from __future__ import annotations

from fastsnn_kernel_numba.deterministic import F, _half_of, _norm_row
from fastsnn_kernel_numba.fused_decoder_four_bits import _embed_four_bits
from fastsnn_kernel_numba.fused_decoder_gates import _narrow_counts
from fastsnn_kernel_numba.fused_decoder_stages import _dequantise, _prefetch_floats, _quantise_row
from fastsnn_kernel_numba.gemm_events import U
from fastsnn_kernel_numba.numba_runtime import compile

INTO_HEADS, INTO_OUT, INTO_HIDDEN, INTO_DOWN, STAGES = range(5)  # projections of a block, and how many


@compile
def _embed(w, token, width):  # type: ignore[no-untyped-def]
    """The residual stream begins as the token's row."""
    row, table = U(token * width), w.stages[0].add
    if table >= 0:
        _embed_four_bits(w, table, token)
    elif len(w.codes):
        for i in range(U(width)):
            w.x[i] = F(w.codes[row + i]) * w.table[token]
    else:
        for i in range(U(width)):
            w.x[i] = w.table[row + i]


@compile
def _prologue(w, before, kept, index, token, pa):  # type: ignore[no-untyped-def]
    """Projection prologue: residual add, RMSNorm, quantise to counts; `pa` is a place in folds.

    `before` has what the projection before this one left and what was wrong, `kept` the residual stream in front of it.
    """
    stage, width, at, size = w.stages[index], len(w.x), index % STAGES, w.stages[index].size
    if index == 0:
        w.row[0].problem = 0
        _embed(w, token, width)
    else:
        w.row[0].problem, w.row[0].site = before.row[0].problem, before.row[0].site
        if stage.add >= 0:
            _dequantise(before, stage.add, 0, width, w.y, U(0))
            for i in range(U(width)):
                w.x[i] = kept[i] + w.y[i]
    row = w.mixed if at == INTO_OUT else w.hidden if at == INTO_DOWN else w.x
    if stage.norm >= 0:
        half, norm, eps = _half_of(size), U(stage.norm), stage.norm_eps
        _norm_row(row, U(0), size, half, w.constants, norm, True, eps, w.folds, pa, w.y, U(0))
    else:
        for i in range(U(size)):
            w.y[i] = row[i]
    _quantise_row(w, size, stage.site, pa)
    if at == INTO_HIDDEN and w.layers[index // STAGES].up_rows:
        _narrow_counts(w, size)


@compile
def _prefetch_matrix(w, matrix):  # type: ignore[no-untyped-def]
    """Prefetch what dequantising a matrix reads beside its sums."""
    m = w.matrices[matrix]
    if m.scale >= 0:
        _prefetch_floats(w.constants, m.scale, m.tall)
    if m.bias >= 0:
        _prefetch_floats(w.constants, m.bias, m.tall)


@compile
def _prefetch_after(w, index):  # type: ignore[no-untyped-def]
    """Prefetch the constants of what comes behind a projection: fetched when needed, they took as long as computing."""
    if index + 1 == len(w.stages):
        return
    row, stage, soon = w.layers[index // STAGES], index % STAGES, w.stages[index + 1]
    if stage == INTO_HEADS:
        _prefetch_matrix(w, row.q)
        _prefetch_matrix(w, row.k)
        _prefetch_matrix(w, row.v)
    elif stage == INTO_HIDDEN:
        _prefetch_matrix(w, row.up)
        if row.gate >= 0:
            _prefetch_matrix(w, row.gate)
    if soon.norm >= 0:
        _prefetch_floats(w.constants, soon.norm, soon.size)
    if soon.add >= 0:
        _prefetch_matrix(w, soon.add)
    if w.sites[soon.site].centre >= 0:
        _prefetch_floats(w.constants, w.sites[soon.site].centre, soon.size)
