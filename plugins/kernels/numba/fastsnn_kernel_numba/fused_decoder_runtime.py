"""A `DecoderPlan` made ready for `fused_decoder_kernel`: tables, packed constants, working memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import DecoderPlan, SoftmaxAttentionForm, Unsupported
from fastsnn_events import byte_product
from fastsnn_integer.decode_step import NotYet, States
from fastsnn_integer.forms import FourBitForm, gate_first, outputs
from fastsnn_integer.plan_check import check_distinct_streams, check_plan, check_start
from fastsnn_kernel_numba import fused_decoder_compile as compiled
from fastsnn_kernel_numba import layout
from fastsnn_kernel_numba.event_quads import WIDE_COLUMNS
from fastsnn_kernel_numba.four_bit_tile import LIST
from fastsnn_kernel_numba.fused_decoder_batch import Batch, located, single_places
from fastsnn_kernel_numba.fused_decoder_four_bits import MOST_BYTES
from fastsnn_kernel_numba.fused_decoder_rows import DENSE_FROM, DENSE_LEAST, MOST_ROWS
from fastsnn_kernel_numba.fused_decoder_stages import KEYS
from fastsnn_kernel_numba.fused_decoder_stream import NumbaStream
from fastsnn_kernel_numba.fused_decoder_tables import Tables
from fastsnn_kernel_numba.fused_decoder_work import Workspace
from fastsnn_kernel_numba.numba_runtime import flat, workers
from fastsnn_kernel_numba.ternary_events import PAIR_LIST

F = np.float32
EVERY = 1 << 62  # without a fast INT8 product of torch (VNNI), rows of steps read prompts of any length faster; with it
# those of up to 4 · MOST_ROWS tokens (128: 1.2 to 1.9 times, 512: as fast)
SINGLE_PHASES = 6  # of a block, at most, where there is one row
OPEN_COST = 1.25  # of a weight behind an open gate, in weights read by events (benchmarks/NOTES.md)


def widest(tables: Tables) -> int:
    """16-bit numbers of a worker's running sums: room for as many of 32 bits as a task has columns."""
    return 2 * (-(-tables.columns // WIDE_COLUMNS) * WIDE_COLUMNS)


class NumbaStepper:
    """`fastsnn_integer.decode_step.DecodeStepper`: one working memory for all its streams, so one step at a time."""

    def __init__(self, plan: DecoderPlan, wait: bool = True) -> None:
        if not wait and not compiled.step_is_compiled():
            if why := compiled.compile_error():
                raise Unsupported(f"compiling failed: {why}; it is tried again in a minute")
            raise NotYet("the fused step is being compiled; the model itself answers meanwhile, with the same bits")
        check_plan(plan)
        self.plan, self.workers = plan, workers()
        self.tables = tables = Tables(plan, self.workers)
        share, size = plan.n_heads // plan.n_kv_heads, plan.head_dim
        self.head_room = -(-((2 * share + 5) * size + tables.rank) // 16) * 16
        fold = 1 << (max(tables.inputs, plan.width, size) - 1).bit_length()
        self.fold_room = max(fold // 2, max(size, KEYS) * size, 16)
        self.work = self.arrays()
        self.works = single_places(self.work, self.workers)
        self.places = layout.pack(layout.PLACES, [located(work) for work in self.works])
        self.one = np.zeros(1, layout.STREAM)
        self.one["run"], self.one["next"] = 1, -1
        self.state_at, self.state_size, self.token, self.position, *_ = (self.one[n] for n in layout.STREAM.names or ())
        self.problem = self.work.row["problem"]
        self.single_sync = self.work.sync[: 16 * (SINGLE_PHASES * len(plan.blocks) + 1)]
        self.came = self.work.sync[-1:]  # how many workers there are so far
        self.batch: Batch | None = None
        self.score = np.zeros(1, F)
        fixed = {
            "n_heads": plan.n_heads, "n_kv_heads": plan.n_kv_heads, "head_dim": size,
            "head_room": self.head_room, "fold_room": self.fold_room, "widest": widest(tables),
            "workers": self.workers, "pieces": self.pieces(), "softmax_scale": size**-0.5, "dense_from": DENSE_FROM,
            "dense_least": DENSE_LEAST, "open_cost": OPEN_COST,
        }  # fmt: skip
        self.call = layout.pack(layout.CALL, [dict.fromkeys(layout.CALL.names or (), 0) | fixed])
        self.call_at, self.written = self.call.ctypes.data, (None,) * 8
        self.logits = torch.from_numpy(self.work.logits)
        self.cos = self.sin = np.zeros(0, F)
        self.positions = 0
        self.busy = threading.Lock()
        four = bool(np.any(self.work.matrices["group"]))
        self.most_read = MOST_ROWS if tables.ternary or four else 4 * MOST_ROWS if byte_product.trusted() else EVERY
        try:
            self.walk = compiled.walk_address()
        except Exception as error:  # a full disk, a broken cache, a compiler without its libraries
            raise Unsupported(f"compiling failed: {type(error).__name__}: {error}") from error

    def arrays(self) -> Workspace:
        """Tables, constants and working memory, as `layout.ARRAYS` says."""
        plan, t, nw = self.plan, self.tables, self.workers
        wide = max(t.inputs, plan.width)
        coded = plan.table_scale is not None
        sizes = {
            "sync": 16 * (17 * len(plan.blocks) + 4), "row": 1, "threshold": 1, "x": plan.width, "y": wide, "z": wide,
            "hidden": wide, "mixed": wide, "counts": wide + 1, "index": wide + 1, "count": wide + 1,
            "acc": nw * widest(t) + 32,
            "sums": t.sums, "sums_64": t.sums, "dots": t.sums, "acc_64": nw * 2 * MOST_BYTES,
            "lists": nw * 2 * max(LIST, PAIR_LIST),
            "heads": nw * self.head_room, "folds": nw * self.fold_room,
            "logits": outputs(plan.head), "gates": nw * plan.head_dim, "count_bytes": 0,
            "narrow": wide + 1, "ways": 2 * len(plan.blocks),
        }  # fmt: skip
        made = {name: np.zeros(size, layout.ARRAYS[name]) for name, size in sizes.items()}
        made |= {name: layout.pack(layout.ARRAYS[name], rows) for name, rows in t.records().items()}
        made["constants"] = np.concatenate([np.zeros(1, F), *t.constants])
        table: Any = torch.zeros(0) if isinstance(plan.table, FourBitForm) else plan.table
        made["codes"] = flat(table) if coded else np.zeros(0, np.int8)
        made["table"] = flat(table if plan.table_scale is None else plan.table_scale.contiguous())
        skip = -made["acc"].ctypes.data % 64 // 2
        made["acc"] = made["acc"][skip : skip + nw * widest(t)]  # whole cache lines
        return Workspace(**made)

    def pieces(self) -> int:
        """Tasks of a key/value head: its query heads are shared out where whole ones leave workers idle."""
        share, groups = self.plan.n_heads // self.plan.n_kv_heads, self.plan.n_kv_heads
        plain = all(isinstance(m, SoftmaxAttentionForm) for block in self.plan.blocks for m in block.attention.mixers)
        return share if plain and groups % self.workers and groups < 4 * self.workers else 1

    @property
    def gate_first(self) -> dict[str, tuple[int, int]]:
        """By layer whose gates shut exactly: blocks of hidden channels whose `up` was computed behind open gates only,
        and others, over all tokens of single streams."""
        ways = self.work.ways.reshape(-1, 2)
        rows = zip(self.plan.blocks, ways)
        return {f"{b.name}.feedforward": (int(n[0]), int(n[1])) for b, n in rows if gate_first(b.feedforward)}

    def angles(self, position: int) -> None:
        """Cosines and sines reach `position`."""
        if position >= self.positions and self.tables.rotary:
            cos, sin = self.plan.angles(position + 1)
            self.positions = len(cos)
            self.cos, self.sin = (flat(t.float().contiguous()) for t in (cos, sin))

    def failure(self, work: Workspace) -> str:
        """What was not finite in a row."""
        row = work.row[0]
        if row["problem"] == layout.GATE_NOT_FINITE:
            return "the gates of an attention: counts must be finite; got NaN or infinity"
        name = self.tables.names[row["site"]]
        return f"site {name}: counts must be finite and fit 32 bits; nothing was wrapped"

    def start(self, position: int, states: States, room: int = 0) -> NumbaStream:
        """A stream of its own, with caches for `room` tokens where that is known."""
        check_start(self.plan, position, states)
        return NumbaStream(self, position, states, room)

    def run(self, stream: NumbaStream, token: int) -> Tensor:
        """Logits after a token of a stream."""
        with self.busy:
            self.angles(stream.position)
            self.state_at[0], self.state_size[0] = stream.address, len(stream.state)
            self.token[0], self.position[0] = token, stream.position
            self.launch(self.places, self.one, 1, 1, stream.slots)
            if self.problem[0]:
                raise FastSNNError(self.failure(self.work))
            return torch.from_numpy(self.work.logits.copy())

    def run_many(self, shares: list[tuple[NumbaStream, Sequence[int], bool]]) -> list[Tensor | FastSNNError | None]:
        """Up to `MOST_ROWS` tokens of several streams, each once: logits after the last token of those that want them,
        or what ended a stream."""
        n = sum(len(tokens) for _, tokens, _ in shares)
        with self.busy:
            if self.batch is None or self.batch.rows < n:
                self.batch = Batch(self.work, min(MOST_ROWS, 1 << (n - 1).bit_length()), self.workers)
            batch = self.batch
            self.angles(max(stream.position + len(tokens) for stream, tokens, _ in shares) - 1)
            rows = batch.fill(shares)
            wanted = sum(wants for _, _, wants in shares)
            self.launch(batch.places, batch.streams, n, wanted, max(stream.slots for stream, _, _ in shares), batch)
            out: list[Tensor | FastSNNError | None] = []
            for (_, _, wants), own in zip(shares, rows, strict=True):
                wrong = next((batch.works[r] for r in own if batch.works[r].row[0]["problem"]), None)
                if wrong is not None:
                    out.append(FastSNNError(self.failure(wrong)))
                else:
                    out.append(torch.from_numpy(batch.works[own[-1]].logits).clone() if wants else None)
            return out

    def launch(self, places: Any, streams: Any, rows: int, wanted: int, slots: int, batch: Batch | None = None) -> None:
        """One step of `rows` rows, the first `wanted` to their logits; the longest cache has `slots` places: all share
        the scores' memory."""
        if len(self.score) < self.workers * slots + 1:
            self.score = np.zeros(self.workers * slots + 1, F)
        if batch is None:
            self.single_sync.fill(0)
            self.came[0] = 0
        else:
            self.work.sync.fill(0)
        now = places, streams, rows, wanted, self.score, self.cos, self.sin, batch
        if not all(map(is_, self.written, now)):
            self.write(*now)
        compiled.start_step(self.walk, self.call_at, self.workers)

    def write(
        self, places: Any, streams: Any, rows: int, wanted: int, score: Any, cos: Any, sin: Any, batch: Batch | None
    ) -> None:
        """Where everything is; the next step of the same arrays need not ask again, a microsecond for each."""
        call = self.call[0]  # a view
        call["places"], call["streams"], call["rows"] = places.ctypes.data, streams.ctypes.data, rows
        call["wanted"] = wanted
        call["score_at"], call["score_size"] = score.ctypes.data, score.size
        call["cos_at"], call["sin_at"], call["angles_size"] = cos.ctypes.data, sin.ctypes.data, cos.size
        if batch is not None:
            call["used_at"], call["used_size"] = batch.used.ctypes.data, batch.used.size
            call["cursor_at"], call["dense_at"] = batch.cursor.ctypes.data, batch.dense.ctypes.data
        self.written = places, streams, rows, wanted, score, cos, sin, batch

    def step_many(self, streams: Sequence[Any], tokens: Sequence[int]) -> list[Tensor | FastSNNError]:
        """Twin of `fastsnn_integer.reference.ReferenceStepper.step_many`: one pass over the weights for 32 streams."""
        return self.read_many(streams, [(token,) for token in tokens])

    def read_many(self, streams: Sequence[Any], pieces: Sequence[Sequence[int]]) -> list[Tensor | FastSNNError]:
        """Twin of `fastsnn_integer.reference.ReferenceStepper.read_many`: one pass over the weights for 32 tokens,
        whosever they are."""
        check_distinct_streams(self, streams)
        out: list[Any] = [None] * len(streams)
        left = dict[int, list[int]]()
        for i, (stream, piece) in enumerate(zip(streams, pieces, strict=True)):
            try:
                stream.prepare(piece)
                left[i] = list(piece)
            except FastSNNError as error:
                out[i] = error
        while left:
            shares, room = dict[int, list[int]](), MOST_ROWS
            for i, tokens in left.items():
                if room:
                    shares[i] = tokens[:room]
                    room -= len(shares[i])
            now = [(streams[i], shares[i], shares[i] == left[i]) for i in shares]
            for i, found in zip(shares, self.run_share(now), strict=True):
                streams[i].after(found, len(shares[i]))
                left[i] = left[i][len(shares[i]) :]
                if isinstance(found, FastSNNError) or not left[i]:
                    out[i] = found
                    del left[i]
        return out

    def run_share(self, shares: list[tuple[NumbaStream, Sequence[int], bool]]) -> list[Any]:
        """`run_many`, or `run` where it is one token of one stream, whose logits then come anyway."""
        (stream, tokens, _), *more = shares
        if more or len(tokens) > 1:
            return self.run_many(shares)
        try:
            return [self.run(stream, tokens[0])]
        except FastSNNError as error:
            return [error]
