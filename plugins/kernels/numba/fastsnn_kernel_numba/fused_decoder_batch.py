"""Working memory of a step: arrays of each row, and tasks that all rows share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsnn_kernel_numba import layout
from fastsnn_kernel_numba.dense_pairs import CHUNK, GROUP
from fastsnn_kernel_numba.fused_decoder_prologue import STAGES
from fastsnn_kernel_numba.fused_decoder_rows import COLUMNS, DENSE_ROOM, FOUR_BYTES, MOST_ROWS
from fastsnn_kernel_numba.fused_decoder_ternary import TERNARY_GROUP
from fastsnn_kernel_numba.fused_decoder_ternary_rows import ROW_BYTES
from fastsnn_kernel_numba.fused_decoder_work import Workspace

ROW_ARRAYS = (
    "row", "threshold", "x", "y", "z", "hidden", "mixed", "counts", "index", "count", "sums", "sums_64", "dots",
    "narrow", "logits",
)  # fmt: skip
OWN_ARRAYS = ("row", "threshold", "x", "y", "counts", "index", "count", "narrow")  # of a worker, of a single row


class Batch:
    """Arrays for `rows` rows of a step whose single rows have `work`: tables are shared, what a row computes is not."""

    def __init__(self, work: Workspace, rows: int, workers: int) -> None:
        self.rows = rows
        matrices = work.matrices.copy()
        matrices["parts"] = 1  # columns are shared out, never events
        stages, tasks = rows_tasks(work, workers)
        shared = {
            "matrices": matrices, "stages": stages, "tasks": tasks,
            "acc": np.zeros(workers * MOST_ROWS * COLUMNS, np.int16),
        }  # fmt: skip
        padded = -(-len(work.counts) // CHUNK) * CHUNK
        self.works = [
            work._replace(
                **shared, **{name: np.zeros_like(getattr(work, name)) for name in ROW_ARRAYS},
                count_bytes=np.zeros(padded, np.int8),
            )
            for _ in range(rows)
        ]  # fmt: skip
        self.places = layout.pack(layout.PLACES, [located(w) for w in self.works])
        self.streams = np.zeros(rows, layout.STREAM)
        self.used = np.zeros(len(work.counts), np.int8)
        self.cursor = np.zeros(2 * workers * MOST_ROWS, np.int64)
        self.dense = np.zeros(workers * DENSE_ROOM, np.int8)

    def fill(self, shares: Sequence[tuple[Any, Sequence[int], bool]]) -> list[list[int]]:
        """Rows of `shares` (stream, its next tokens, are logits wanted after the last?); which rows each one has.

        Rows that want logits come first, then the others of each stream, long pieces behind short ones.
        """
        wanted = [i for i, (_, _, wants) in enumerate(shares) if wants]
        free, found = len(wanted), dict[int, list[int]]()
        for i in sorted(range(len(shares)), key=lambda i: len(shares[i][1])):
            stream, tokens, wants = shares[i]
            own = [*range(free, free + len(tokens) - wants), *([wanted.index(i)] if wants else [])]
            free += len(tokens) - wants
            found[i] = own
            at, size = stream.state.ctypes.data, stream.state.size
            for place, (row, token) in enumerate(zip(own, tokens, strict=True)):
                run = len(own) if place == 0 else 0
                after = own[place + 1] if place + 1 < len(own) else -1
                self.streams[row] = at, size, token, stream.position + place, run, after
                self.works[row].row.fill(0)
        return [found[i] for i in range(len(shares))]


def rows_tasks(work: Workspace, workers: int) -> tuple[Any, Any]:
    """Stages and tasks of the same projections by columns alone, in pieces whose sums of all rows stay in cache.

    As many pieces as share out evenly among the workers, of whole groups of columns: three equal ones on two workers
    take as long as four.
    """
    stages, tasks = work.stages.copy(), []
    for stage in stages:
        begin, ends = len(tasks), dict[int, int]()
        for task in work.tasks[stage["first_task"] : stage["last_task"]]:
            matrix, end = int(task["matrix"]), int(task["column"] + task["columns"])
            ends[matrix] = max(end, ends.get(matrix, 0))
        for matrix, end in ends.items():
            group = int(work.matrices[matrix]["group"])
            most = ROW_BYTES if group == TERNARY_GROUP else FOUR_BYTES if group else COLUMNS
            units = -(-end // GROUP)
            pieces = min(units, -(-units * GROUP // (most * workers)) * workers)
            for piece in range(pieces):
                first, last = (GROUP * (units * p // pieces) for p in (piece, piece + 1))
                tasks.append({"matrix": matrix, "column": first, "columns": min(last, end) - first, "part": 0})
        stage["first_task"], stage["last_task"] = begin, len(tasks)
    return stages, layout.pack(layout.TASK, tasks)


def single_places(work: Workspace, workers: int) -> list[Workspace]:
    """The arrays that a single row has: `fastsnn_kernel_numba.fused_decoder_single`."""
    other = {name: np.zeros_like(getattr(work, name)) for name in ("sums", "sums_64", "dots")}
    x, out = np.zeros_like(work.x), [work]
    for stage in range(1, STAGES):
        own = {name: np.zeros_like(getattr(work, name)) for name in ("row", "threshold")}
        out.append(work._replace(**own, **(other if stage % 2 else {}), x=x if stage > 1 else work.x))
    for _ in range(workers):
        own = {name: np.zeros_like(getattr(work, name)) for name in OWN_ARRAYS}
        out += [shared._replace(**own) for shared in out[:STAGES]]
    return out


def located(work: Workspace) -> dict[str, int]:
    """Address and size of every array."""
    found = {}
    for name, kind in layout.ARRAYS.items():
        array = getattr(work, name)
        if array.dtype != kind or not array.flags.c_contiguous:
            raise TypeError(f"{name} is {array.dtype}, wanted {kind} in one piece")
        found |= {f"{name}_at": array.ctypes.data, f"{name}_size": array.size}
    return found
