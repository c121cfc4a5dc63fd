"""The arrays of one row of a fused step, and how a kernel finds them by their addresses."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.layout import (
    FLOAT,
    INT,
    INT8,
    INT16,
    INT32,
    LAYER,
    MATRIX,
    MIXER,
    ROW,
    SITE,
    STAGE,
    TASK,
)
from fastsnn_kernel_numba.numba_runtime import compile


class Workspace(NamedTuple):
    """All arrays of a fused step: tables, packed constants, scratch buffers. See `layout.ARRAYS`."""

    sync: Any
    layers: Any
    stages: Any
    matrices: Any
    tasks: Any
    sites: Any
    mixers: Any
    constants: Any
    codes: Any
    table: Any
    row: Any
    threshold: Any
    x: Any
    y: Any
    z: Any
    hidden: Any
    mixed: Any
    counts: Any
    index: Any
    count: Any
    acc: Any
    sums: Any
    sums_64: Any
    dots: Any
    acc_64: Any
    lists: Any
    heads: Any
    folds: Any
    logits: Any
    gates: Any
    narrow: Any
    ways: Any
    count_bytes: Any


@compile
def _work(p):  # type: ignore[no-untyped-def]
    """The arrays at the places of a record `PLACES`."""
    return Workspace(
        sync=view(p.sync_at, p.sync_size, INT),
        layers=view(p.layers_at, p.layers_size, LAYER),
        stages=view(p.stages_at, p.stages_size, STAGE),
        matrices=view(p.matrices_at, p.matrices_size, MATRIX),
        tasks=view(p.tasks_at, p.tasks_size, TASK),
        sites=view(p.sites_at, p.sites_size, SITE),
        mixers=view(p.mixers_at, p.mixers_size, MIXER),
        constants=view(p.constants_at, p.constants_size, FLOAT),
        codes=view(p.codes_at, p.codes_size, INT8),
        table=view(p.table_at, p.table_size, FLOAT),
        row=view(p.row_at, p.row_size, ROW),
        threshold=view(p.threshold_at, p.threshold_size, FLOAT),
        x=view(p.x_at, p.x_size, FLOAT),
        y=view(p.y_at, p.y_size, FLOAT),
        z=view(p.z_at, p.z_size, FLOAT),
        hidden=view(p.hidden_at, p.hidden_size, FLOAT),
        mixed=view(p.mixed_at, p.mixed_size, FLOAT),
        counts=view(p.counts_at, p.counts_size, INT32),
        index=view(p.index_at, p.index_size, INT32),
        count=view(p.count_at, p.count_size, INT32),
        acc=view(p.acc_at, p.acc_size, INT16),
        sums=view(p.sums_at, p.sums_size, INT32),
        sums_64=view(p.sums_64_at, p.sums_64_size, INT),
        dots=view(p.dots_at, p.dots_size, FLOAT),
        acc_64=view(p.acc_64_at, p.acc_64_size, INT),
        lists=view(p.lists_at, p.lists_size, INT),
        heads=view(p.heads_at, p.heads_size, FLOAT),
        folds=view(p.folds_at, p.folds_size, FLOAT),
        logits=view(p.logits_at, p.logits_size, FLOAT),
        gates=view(p.gates_at, p.gates_size, INT32),
        narrow=view(p.narrow_at, p.narrow_size, INT16),
        ways=view(p.ways_at, p.ways_size, INT),
        count_bytes=view(p.count_bytes_at, p.count_bytes_size, INT8),
    )
