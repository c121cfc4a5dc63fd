"""A `DecoderPlan` made ready for `fused_decoder_kernel`: tables, packed constants, working memory; and its streams."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import (
    DecoderPlan,
    LinearAttentionForm,
    MixerForm,
    SoftmaxAttentionForm,
    Unsupported,
)
from fastsnn_integer.decode_step import NotYet, States
from fastsnn_integer.forms import FourBitForm, gate_first, outputs
from fastsnn_integer.plan_check import check_distinct_streams, check_plan, check_start, check_token
from fastsnn_kernel_numba import fused_decoder_compile as compiled
from fastsnn_kernel_numba import layout
from fastsnn_kernel_numba.buffer_pool import zeros
from fastsnn_kernel_numba.four_bit_tile import LIST
from fastsnn_kernel_numba.fused_decoder_batch import Batch, located
from fastsnn_kernel_numba.fused_decoder_four_bits import MOST_BYTES
from fastsnn_kernel_numba.fused_decoder_kernel import BLOCK
from fastsnn_kernel_numba.fused_decoder_rows import DENSE_FROM, DENSE_LEAST, MOST_ROWS
from fastsnn_kernel_numba.fused_decoder_stages import KEYS
from fastsnn_kernel_numba.fused_decoder_tables import Tables
from fastsnn_kernel_numba.fused_decoder_work import Workspace
from fastsnn_kernel_numba.numba_runtime import flat, workers
from fastsnn_kernel_numba.ternary_events import PAIR_LIST

F, I = np.float32, np.int64
OPEN_COST = 1.25  # of a weight behind an open gate, in weights read by events (benchmarks/NOTES.md)


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
        self.places = layout.pack(layout.PLACES, [located(self.work)])
        self.one = np.zeros(1, layout.STREAM)
        self.batch: Batch | None = None
        self.score = np.zeros(1, F)
        fixed = {
            "n_heads": plan.n_heads, "n_kv_heads": plan.n_kv_heads, "head_dim": size,
            "head_room": self.head_room, "fold_room": self.fold_room, "widest": tables.columns,
            "workers": self.workers, "softmax_scale": size**-0.5, "dense_from": DENSE_FROM,
            "dense_least": DENSE_LEAST, "open_cost": OPEN_COST,
        }  # fmt: skip
        self.call = layout.pack(layout.CALL, [dict.fromkeys(layout.CALL.names or (), 0) | fixed])
        self.logits = torch.from_numpy(self.work.logits)
        self.cos = self.sin = np.zeros(0, F)
        self.positions = 0
        self.busy = threading.Lock()
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
            "sync": 16 * (17 * len(plan.blocks) + 3), "row": 1, "threshold": 1, "x": plan.width, "y": wide, "z": wide,
            "mixed": wide, "counts": wide + 1, "index": wide + 1, "count": wide + 1, "acc": nw * t.columns,
            "sums": t.sums, "sums_64": t.sums, "dots": t.sums, "acc_64": nw * 2 * MOST_BYTES,
            "lists": nw * 2 * max(LIST, PAIR_LIST),
            "heads": nw * self.head_room, "folds": nw * self.fold_room,
            "logits": outputs(plan.head), "gates": nw * plan.head_dim, "count_bytes": 0,
            "narrow": wide + 1, "opens": 1 + t.hidden // BLOCK + 1, "ways": 2 * len(plan.blocks),
        }  # fmt: skip
        made = {name: np.zeros(size, layout.ARRAYS[name]) for name, size in sizes.items()}
        made |= {name: layout.pack(layout.ARRAYS[name], rows) for name, rows in t.records().items()}
        made["constants"] = np.concatenate([np.zeros(1, F), *t.constants])
        table: Any = torch.zeros(0) if isinstance(plan.table, FourBitForm) else plan.table
        made["codes"] = flat(table) if coded else np.zeros(0, np.int8)
        made["table"] = flat(table if plan.table_scale is None else plan.table_scale.contiguous())
        return Workspace(**made)

    @property
    def gate_first(self) -> dict[str, tuple[int, int]]:
        """By layer whose gates shut exactly: tokens with `up` behind open gates only, and with all of it."""
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
            self.work.row.fill(0)
            fill_call(self.one[0], stream, token)
            self.launch(self.places, self.one, 1, stream.slots)
            if self.work.row[0]["problem"]:
                raise FastSNNError(self.failure(self.work))
            return self.logits.clone()

    def run_many(self, streams: list[NumbaStream], tokens: list[int]) -> list[Tensor | FastSNNError]:
        """Logits after a token of each of 2 to `MOST_ROWS` streams, or what ended a stream."""
        n = len(streams)
        with self.busy:
            if self.batch is None or self.batch.rows < n:
                self.batch = Batch(self.work, min(MOST_ROWS, 1 << (n - 1).bit_length()), self.workers)
            batch = self.batch
            self.angles(max(stream.position for stream in streams))
            for row, stream, token, work in zip(batch.streams, streams, tokens, batch.works):
                work.row.fill(0)
                fill_call(row, stream, token)
            self.launch(batch.places, batch.streams, n, max(stream.slots for stream in streams), batch)
            return [
                FastSNNError(self.failure(work)) if work.row[0]["problem"] else torch.from_numpy(work.logits).clone()
                for work in batch.works[:n]
            ]

    def launch(self, places: Any, streams: Any, rows: int, slots: int, batch: Batch | None = None) -> None:
        """One step of `rows` rows, whose longest cache has `slots` places: all share the scores' memory."""
        if len(self.score) < self.workers * slots + 1:
            self.score = np.zeros(self.workers * slots + 1, F)
        self.work.sync.fill(0)
        call = self.call[0]  # a view
        call["places"], call["streams"], call["rows"] = places.ctypes.data, streams.ctypes.data, rows
        call["score_at"], call["score_size"] = self.score.ctypes.data, self.score.size
        call["cos_at"], call["sin_at"] = self.cos.ctypes.data, self.sin.ctypes.data
        call["angles_size"] = self.cos.size
        if batch is not None:
            call["used_at"], call["used_size"] = batch.used.ctypes.data, batch.used.size
            call["cursor_at"], call["dense_at"] = batch.cursor.ctypes.data, batch.dense.ctypes.data
        compiled._step(self.walk, self.call.ctypes.data)

    def step_many(self, streams: Sequence[Any], tokens: Sequence[int]) -> list[Tensor | FastSNNError]:
        """Twin of `fastsnn_integer.reference.ReferenceStepper.step_many`: one pass over the weights for 32 streams
        (ternary weights: a pass for each)."""
        check_distinct_streams(self, streams)
        out: list[Any] = [None] * len(streams)
        ready = []
        for i, (stream, token) in enumerate(zip(streams, tokens, strict=True)):
            try:
                stream.prepare(token)
                ready.append(i)
            except FastSNNError as error:
                out[i] = error
        most = 1 if self.tables.ternary else MOST_ROWS
        for first in range(0, len(ready), most):
            some = ready[first : first + most]
            if len(some) == 1:
                out[some[0]] = one_step(streams[some[0]], tokens[some[0]])
                continue
            found = self.run_many([streams[i] for i in some], [tokens[i] for i in some])
            for i, logits in zip(some, found, strict=True):
                out[i] = logits
                streams[i].after(logits)
        return out


def one_step(stream: NumbaStream, token: int) -> Tensor | FastSNNError:
    """Logits of a stream that steps alone, or what ended it."""
    try:
        return stream.step(token)
    except FastSNNError as error:
        return error


def fill_call(row: Any, stream: NumbaStream, token: int) -> None:
    """A row of a call."""
    row["token"], row["position"] = token, stream.position
    row["state_at"], row["state_size"] = stream.state.ctypes.data, stream.state.size


def owned_numbers(t: Tensor) -> Any:
    """The numbers of a tensor in memory of our own."""
    out = zeros((t.numel(),))
    out[:] = t.reshape(-1).numpy()
    return out


class NumbaStream:
    """`fastsnn_integer.decode_step.DecodeStream`."""

    def __init__(self, stepper: NumbaStepper, position: int, states: States, room: int = 0) -> None:
        self.stepper, self.position, self.failure, self.room = stepper, position, "", room
        self.mixers = [m for block in stepper.plan.blocks for m in block.attention.mixers]
        given = [pair for block in states for pair in block]
        self.state = np.zeros(max(1, len(self.mixers)), layout.STATE)
        self.memory: list[Any] = [None] * len(self.mixers)
        for m, (mixer, (first, second)) in enumerate(zip(self.mixers, given, strict=True)):
            if isinstance(mixer, LinearAttentionForm):
                self.keep(m, owned_numbers(first), owned_numbers(second))
            else:
                self.fill(m, first, second)
        self.endless = [m for m, f in enumerate(self.mixers) if isinstance(f, SoftmaxAttentionForm) and not f.window]

    def keep(self, m: int, first: Any, second: Any) -> None:
        """Hold a mixer's memory, and write down where it is."""
        self.memory[m] = (first, second)
        self.state[m]["first"], self.state[m]["second"] = first.ctypes.data, second.ctypes.data

    def fill(self, m: int, keys: Tensor, values: Tensor) -> None:
        """A cache with room for the tokens asked for, or one more than it holds: `keys`, `values` ``[n, G, K]``."""
        held, groups, size = keys.shape
        capacity = -(-(window_of(self.mixers[m]) or max(self.room, held + 1)) // KEYS) * KEYS
        k, v = zeros((groups, capacity // KEYS, size, KEYS)), zeros((groups, capacity, size))
        blocks = -(-held // KEYS)
        padded = np.zeros((groups, blocks * KEYS, size), F)
        padded[:, :held], v[:, :held] = keys.transpose(0, 1).numpy(), values.transpose(0, 1).numpy()
        k[:, :blocks] = padded.reshape(groups, blocks, KEYS, size).swapaxes(2, 3)
        self.keep(m, k.reshape(-1), v.reshape(-1))
        self.state[m]["capacity"], self.state[m]["seen"] = capacity, held

    @property
    def slots(self) -> int:
        """Places of the longest cache."""
        return int(self.state["capacity"].max(initial=0))

    def prepare(self, token: int) -> None:
        """Refuse a token that cannot be taken; then there is room for it."""
        check_token(self.stepper.plan, token)
        if self.failure:
            raise FastSNNError(f"this stream ended with an error: {self.failure}")
        self.grow()

    def after(self, logits: Tensor | FastSNNError) -> None:
        """A step has been done, or has ended this stream."""
        if isinstance(logits, FastSNNError):
            self.failure = str(logits)
            return
        self.position += 1
        self.state["seen"] += 1

    def step(self, token: int) -> Tensor:
        """Logits after `token`."""
        self.prepare(token)
        try:
            logits = self.stepper.run(self, token)
        except FastSNNError as error:
            self.after(error)
            raise
        self.after(logits)
        return logits

    def grow(self) -> None:
        """Caches without a window get a block more when they are full: a copy every `KEYS` tokens, a few per cent of
        what attention reads of them in so many steps, and never more memory than the tokens take."""
        groups, size = self.stepper.plan.n_kv_heads, self.stepper.plan.head_dim
        for m in self.endless:
            capacity = int(self.state[m]["capacity"])
            if self.state[m]["seen"] == capacity:
                longer = []
                for array in self.memory[m]:
                    new = zeros((groups, capacity // KEYS + 1, KEYS * size))
                    new[:, :-1] = array.reshape(groups, -1, KEYS * size)
                    longer.append(new.reshape(-1))
                self.keep(m, *longer)
                self.state[m]["capacity"] = capacity + KEYS

    @property
    def nbytes(self) -> int:
        """Memory of the states."""
        return sum(array.nbytes for both in self.memory for array in both)

    def held(self, m: int) -> tuple[Tensor, Tensor]:
        """A mixer's state, out of the kernel's form."""
        plan, mixer = self.stepper.plan, self.mixers[m]
        groups, size = plan.n_kv_heads, plan.head_dim
        first, second = self.memory[m]
        if isinstance(mixer, LinearAttentionForm):
            s, z = first.reshape(groups, size, size), second.reshape(groups, size)
            return torch.from_numpy(s.copy()), torch.from_numpy(z.copy())
        capacity, seen = int(self.state[m]["capacity"]), int(self.state[m]["seen"])
        slots = np.arange(seen - min(seen, mixer.window or seen), seen) % capacity
        k = first.reshape(groups, capacity // KEYS, size, KEYS).swapaxes(2, 3).reshape(groups, capacity, size)
        k, v = (
            torch.from_numpy(x[:, slots].swapaxes(0, 1).copy()) for x in (k, second.reshape(groups, capacity, size))
        )
        return k, v

    def states(self) -> States:
        """All states, per block and form."""
        rest = iter(range(len(self.mixers)))
        return [[self.held(next(rest)) for _ in block.attention.mixers] for block in self.stepper.plan.blocks]


def window_of(mixer: MixerForm) -> int:
    """Tokens that an attention sees; 0 for all."""
    return mixer.window if isinstance(mixer, SoftmaxAttentionForm) else 0
