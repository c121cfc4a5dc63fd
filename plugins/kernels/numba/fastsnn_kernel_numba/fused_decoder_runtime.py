"""A `DecoderPlan` made ready for `fused_decoder_kernel`: tables, packed constants, working memory; and its streams."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import (
    DecoderPlan,
    LinearAttentionForm,
    MixerForm,
    NotYet,
    SoftmaxAttentionForm,
    States,
    Unsupported,
)
from fastsnn_integer.plan_check import check_plan, check_start, check_token
from fastsnn_kernel_numba import fused_decoder_kernel as kernel
from fastsnn_kernel_numba import layout
from fastsnn_kernel_numba.buffer_pool import zeros
from fastsnn_kernel_numba.fused_decoder_stages import KEYS
from fastsnn_kernel_numba.fused_decoder_tables import Tables
from fastsnn_kernel_numba.numba_runtime import flat, workers

F, I = np.float32, np.int64


class NumbaStepper:
    """`fastsnn_core.lowering.Stepper`: one working memory for all its streams, so one step at a time."""

    def __init__(self, plan: DecoderPlan, wait: bool = True) -> None:
        if not wait and not kernel.ready():
            if why := kernel.failure():
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
        self.places = layout.pack(layout.PLACES, [self.located()])
        fixed = {
            "places": self.places.ctypes.data, "n_heads": plan.n_heads, "n_kv_heads": plan.n_kv_heads, "head_dim": size,
            "head_room": self.head_room, "fold_room": self.fold_room, "widest": tables.columns,
            "workers": self.workers, "softmax_scale": size**-0.5,
        }  # fmt: skip
        self.call = layout.pack(layout.CALL, [dict.fromkeys(layout.CALL.names or (), 0) | fixed])
        self.logits = torch.from_numpy(self.work.logits)
        self.cos = self.sin = np.zeros(0, F)
        self.positions = 0
        self.busy = threading.Lock()
        try:
            self.walk = kernel.walk()
        except Exception as error:  # a full disk, a broken cache, a compiler without its libraries
            raise Unsupported(f"compiling failed: {type(error).__name__}: {error}") from error

    def arrays(self) -> kernel.Work:
        """Tables, constants and working memory, as `layout.ARRAYS` says."""
        plan, t, nw = self.plan, self.tables, self.workers
        wide = max(t.inputs, plan.width)
        coded = plan.table_scale is not None
        sizes = {
            "sync": 16 * (10 * len(plan.blocks) + 2), "row": 1, "threshold": 1, "x": plan.width, "y": wide, "z": wide,
            "mixed": wide, "counts": wide + 1, "index": wide + 1, "count": wide + 1, "acc": nw * t.columns,
            "sums": t.sums, "sums_64": t.sums, "heads": nw * self.head_room, "folds": nw * self.fold_room,
            "logits": len(plan.head.weight), "gates": nw * plan.head_dim,
        }  # fmt: skip
        made = {name: np.zeros(size, layout.ARRAYS[name]) for name, size in sizes.items()}
        made |= {name: layout.pack(layout.ARRAYS[name], rows) for name, rows in t.records().items()}
        made["constants"] = np.concatenate([np.zeros(1, F), *t.constants])
        made["codes"] = flat(plan.table) if coded else np.zeros(0, np.int8)
        made["table"] = flat(plan.table if plan.table_scale is None else plan.table_scale.contiguous())
        return kernel.Work(**made)

    def located(self) -> dict[str, int]:
        """Address and size of every array."""
        found: dict[str, int] = {}
        for name, kind in layout.ARRAYS.items():
            array = getattr(self.work, name)
            if array.dtype != kind or not array.flags.c_contiguous:
                raise TypeError(f"{name} is {array.dtype}, wanted {kind} in one piece")
            found |= {f"{name}_at": array.ctypes.data, f"{name}_size": array.size}
        return found

    def angles(self, position: int) -> None:
        """Cosines and sines reach `position`."""
        if position >= self.positions and self.tables.rotary:
            cos, sin = self.plan.angles(position + 1)
            self.positions = len(cos)
            self.cos, self.sin = (flat(t.float().contiguous()) for t in (cos, sin))

    def failure(self) -> str:
        """What was not finite."""
        row = self.work.row[0]
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
            self.work.sync.fill(0)
            self.work.row.fill(0)
            call = self.call[0]  # a view
            call["token"], call["position"] = token, stream.position
            call["state_at"], call["state_size"] = stream.state.ctypes.data, stream.state.size
            call["score_at"], call["score_size"] = stream.score.ctypes.data, stream.score.size
            call["cos_at"], call["sin_at"] = self.cos.ctypes.data, self.sin.ctypes.data
            call["angles_size"] = self.cos.size
            kernel._step(self.walk, self.call.ctypes.data)
            if self.work.row[0]["problem"]:
                raise FastSNNError(self.failure())
            return self.logits.clone()


def copied(t: Tensor) -> Any:
    """The numbers of a tensor in memory of our own."""
    out = zeros((t.numel(),))
    out[:] = t.reshape(-1).numpy()
    return out


class NumbaStream:
    """`fastsnn_core.lowering.Stream`."""

    def __init__(self, stepper: NumbaStepper, position: int, states: States, room: int = 0) -> None:
        self.stepper, self.position, self.failure, self.room = stepper, position, "", room
        self.mixers = [m for block in stepper.plan.blocks for m in block.attention.mixers]
        given = [pair for block in states for pair in block]
        self.state = np.zeros(max(1, len(self.mixers)), layout.STATE)
        self.memory: list[Any] = [None] * len(self.mixers)
        for m, (mixer, (first, second)) in enumerate(zip(self.mixers, given, strict=True)):
            if isinstance(mixer, LinearAttentionForm):
                self.keep(m, copied(first), copied(second))
            else:
                self.fill(m, first, second)
        self.endless = [m for m, f in enumerate(self.mixers) if isinstance(f, SoftmaxAttentionForm) and not f.window]
        self.refresh()

    def keep(self, m: int, first: Any, second: Any) -> None:
        """Hold a mixer's memory, and write down where it is."""
        self.memory[m] = (first, second)
        self.state[m]["first"], self.state[m]["second"] = first.ctypes.data, second.ctypes.data

    def fill(self, m: int, keys: Tensor, values: Tensor) -> None:
        """A cache with room for the tokens asked for, else for twice what it holds: `keys`, `values` ``[n, G, K]``."""
        held, groups, size = keys.shape
        window = window_of(self.mixers[m])
        room = self.room if self.room > held else 2 * held + KEYS
        capacity = -(-(window or room) // KEYS) * KEYS
        k, v = zeros((groups, capacity // KEYS, size, KEYS)), zeros((groups, capacity, size))
        padded = np.zeros((groups, capacity, size), F)
        padded[:, :held], v[:, :held] = keys.transpose(0, 1).numpy(), values.transpose(0, 1).numpy()
        k[:] = padded.reshape(groups, capacity // KEYS, KEYS, size).swapaxes(2, 3)
        self.keep(m, k.reshape(-1), v.reshape(-1))
        self.state[m]["capacity"], self.state[m]["seen"] = capacity, held

    def refresh(self) -> None:
        """Scores need as much room as the longest cache."""
        self.score = np.zeros(self.stepper.workers * int(self.state["capacity"].max(initial=0)) + 1, F)

    def step(self, token: int) -> Tensor:
        """Logits after `token`."""
        check_token(self.stepper.plan, token)
        if self.failure:
            raise FastSNNError(f"this stream ended with an error: {self.failure}")
        self.grow()
        try:
            logits = self.stepper.run(self, token)
        except FastSNNError as error:
            self.failure = str(error)
            raise
        self.position += 1
        self.state["seen"] += 1
        return logits

    def grow(self) -> None:
        """Caches without a window get twice the room when they are full."""
        for m in self.endless:
            if self.state[m]["seen"] == self.state[m]["capacity"]:
                self.fill(m, *self.held(m))
                self.refresh()

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
