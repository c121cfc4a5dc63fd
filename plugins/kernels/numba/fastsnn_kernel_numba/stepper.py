"""A plan made ready for `fastsnn_kernel_numba.decode`: tables of whole numbers, constants, working memory, streams."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import Layer, Matrix, Mixer, NotYet, Plan, Spikes, Unsupported
from fastsnn_integer import deterministic
from fastsnn_kernel_numba import step
from fastsnn_kernel_numba.decode import CALL, EPSILON, LAYER, SCALE_V, Q, Work, _step, ready, walk
from fastsnn_kernel_numba.launch import flat, workers
from fastsnn_kernel_numba.linear import input_major, is_input_major
from fastsnn_kernel_numba.memory import zeros
from fastsnn_kernel_numba.step import KEYS, MOST_BURST
from fastsnn_kernel_numba.views import places

F, I = np.float32, np.int64
FORMS = list(deterministic.FORMS)
KINDS = {"levels": step.LEVELS, "mean": step.MEAN, "max": step.MAX}
COLUMNS = 4096  # outputs per task: 8 KiB of 16-bit sums stay in L1
NARROW = 4096  # projections up to this many outputs are split over events
States = list[list[tuple[Tensor, Tensor]]]


class Tables:
    """Rows of whole numbers and a list of constants that grow while a plan is read."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.constants: list[Any] = []
        self.size = 0
        self.matrices: list[list[int]] = []
        self.tasks: list[list[int]] = []
        self.sites: list[list[int]] = []
        self.levels: list[list[float]] = []
        self.mixers: list[list[int]] = []
        self.rates: list[list[float]] = []
        self.names: list[str] = []  # of the sites
        self.held: list[Tensor] = []  # weights whose addresses are in use
        self.room = self.most = self.wide = 1  # sums, columns of a task, inputs

    def constant(self, values: Tensor | None) -> int:
        """Where these numbers are; -1 for none."""
        if values is None:
            return -1
        self.constants.append(values.detach().float().reshape(-1).numpy())
        self.size += values.numel()
        return self.size - values.numel()

    def matrix(self, matrix: Matrix, weight: Tensor, sums: int, parts: int) -> int:
        """A row of `mats`: where the outputs of a matrix are among those of `weight`."""
        self.held.append(weight)
        tall, inputs = weight.shape
        self.wide = max(self.wide, inputs)
        row = [weight.data_ptr(), tall, inputs, self.constant(matrix.scale), self.constant(matrix.bias), sums, parts]
        self.matrices.append(row)
        return len(self.matrices) - 1

    def projection(self, *groups: list[Matrix], split: int = 1) -> tuple[list[int], list[int]]:
        """Matrices with the same input, each group as one: their rows, and the first and last task of the phase.

        The first `split` groups may be split over events; what reads them adds up the parts, and may do that only once.
        """
        rows, begin, sums = [], len(self.tasks), 0
        for i, matrices in enumerate(groups):
            weight, own = joined(matrices), len(rows)
            tall = len(weight)
            parts, first = self.workers if i < split and tall <= NARROW else 1, sums
            for matrix in matrices:
                rows.append(self.matrix(matrix, weight, first, parts))
                first += len(matrix.weight)
            for part in range(parts):
                for column in range(0, tall, COLUMNS):
                    columns = min(COLUMNS, tall - column)
                    self.tasks.append([rows[own], column, columns, part])
                    self.most = max(self.most, columns)
            sums += tall * parts
        self.room = max(self.room, sums)
        return rows, [begin, len(self.tasks)]

    def site(self, spikes: Spikes) -> int:
        """A row of `sites`."""
        if spikes.burst >= MOST_BURST:
            raise Unsupported(f"{spikes.name}: burst = {spikes.burst}; up to {MOST_BURST - 1} are fused")
        self.sites.append([KINDS[spikes.kind], self.constant(spikes.centre), spikes.burst])
        self.names.append(spikes.name)
        self.levels.append([spikes.level, spikes.bound, spikes.dead_zone])
        return len(self.sites) - 1

    def mixer(self, mixer: Mixer, down: int) -> None:
        """A row of `mixers`."""
        feature = FORMS.index(mixer.feature) if mixer.feature else -1
        if mixer.feature and mixer.rotary:
            raise Unsupported("a running-sum attention with rotary positions is not fused")
        up = -1 if mixer.gate is None else self.matrix(mixer.gate.up, joined([mixer.gate.up]), 0, 1)
        self.mixers.append([feature, int(mixer.rotary), mixer.window, down, up, self.constant(mixer.norm)])
        self.rates.append([mixer.gate.tau if mixer.gate else 1.0, mixer.eps])

    def stage(self, spikes: Spikes, tasks: list[int], norm: Tensor | None, add: int, size: int) -> list[int]:
        """What `_ready` does in front of a projection, and its tasks."""
        return [self.site(spikes), *tasks, self.constant(norm), add, size]

    def layer(self, layer: Layer, add: int) -> tuple[list[int], int]:
        """A row of `layers`, behind the projection `add`; the projection that the next layer begins with."""
        gates = [m.gate.down for m in layer.mixers if m.gate]
        (q, k, v, *downs), tasks = self.projection([layer.q, layer.k, layer.v], *([down] for down in gates))
        row = self.stage(layer.spikes, tasks, layer.norm, add, len(layer.norm))
        begin, left = len(self.mixers), iter(downs)
        for mixer in layer.mixers:
            self.mixer(mixer, next(left) if mixer.gate else -1)
        (out,), tasks = self.projection([layer.out])
        row += self.stage(layer.mixed, tasks, None, -1, layer.out.weight.shape[1])
        (up, *gate), tasks = self.projection([layer.up] if layer.gate is None else [layer.up, layer.gate])
        row += self.stage(layer.spikes2, tasks, layer.norm2, out, len(layer.norm2))
        (down,), tasks = self.projection([layer.down])
        hidden = len(layer.up.weight)
        row += self.stage(layer.hidden, tasks, None, -1, hidden)
        row += [q, k, v, self.constant(layer.q_norm), self.constant(layer.k_norm), begin, len(self.mixers)]
        return [*row, up, gate[0] if gate else -1, FORMS.index(layer.activation), hidden], down


def joined(matrices: list[Matrix]) -> Tensor:
    """The weights of matrices with the same input as one, input-major: as they lie, or a copy side by side."""
    first, tall = matrices[0].weight, sum(len(m.weight) for m in matrices)
    place, stride = first.data_ptr(), first.stride(1)
    for m in matrices:
        if not is_input_major(m.weight) or m.weight.stride(1) != stride or m.weight.data_ptr() != place:
            return input_major(torch.cat([m.weight for m in matrices]))
        place += len(m.weight)
    if stride != tall:  # a part of something larger
        return input_major(torch.cat([m.weight for m in matrices]))
    return first.as_strided((tall, first.shape[1]), (1, stride))


class NumbaStepper:
    """`fastsnn_core.lowering.Stepper`: one working memory for all its streams, so one step at a time."""

    def __init__(self, plan: Plan, wait: bool = True) -> None:
        if not wait and not ready():
            raise NotYet("the fused step is being compiled; the model itself answers meanwhile, with the same bits")
        self.plan, nw = plan, workers()
        self.workers = nw
        t = Tables(nw)
        layers, add = [], -1
        for layer in plan.layers:
            row, add = t.layer(layer, add)
            layers.append(row)
        (head,), tasks = t.projection([plan.head], split=0)
        tail = t.stage(plan.spikes, tasks, plan.norm, add, plan.width)
        tail += [0] * (LAYER - len(tail))
        tail[Q] = head
        self.tables = t
        share, size = plan.n_heads // plan.n_kv_heads, plan.head_dim
        rank = max([len(m.gate.down.weight) for layer in plan.layers for m in layer.mixers if m.gate] + [0])
        self.own = -(-((2 * share + 5) * size + rank) // 16) * 16
        fold = 1 << (max(t.wide, plan.width, size) - 1).bit_length()
        self.part = max(fold // 2, max(size, KEYS) * size, 16)
        wide, t.constants = max(t.wide, plan.width), t.constants or [np.zeros(1, F)]
        coded = plan.table_scale is not None
        phases = 10 * len(plan.layers) + 2
        self.work = Work(
            np.zeros(16 * phases, I), *(np.array(rows, I) for rows in ([*layers, tail], t.matrices, t.tasks, t.sites)),
            np.array(t.levels, F).reshape(-1, 3), np.array(t.mixers, I).reshape(-1, 6),
            np.array(t.rates, F).reshape(-1, 2), np.concatenate(t.constants),
            flat(plan.table) if coded else np.zeros(0, np.int8),
            flat(plan.table_scale if plan.table_scale is not None else plan.table),
            np.zeros(8, I), np.zeros(8, F),
            np.zeros(plan.width, F), np.zeros(wide, F), np.zeros(wide, F), np.zeros(wide, F),
            np.zeros(wide + 1, np.int32), np.zeros(wide + 1, np.int32), np.zeros(wide + 1, np.int32),
            np.zeros(nw * t.most, np.int16), np.zeros(t.room, np.int32), np.zeros(t.room, I),
            np.zeros(nw * self.own, F), np.zeros(nw * self.part, F), np.zeros(len(plan.head.weight), F),
            np.zeros(nw * size, np.int32),
        )  # fmt: skip
        self.work.volts[SCALE_V], self.work.volts[EPSILON] = size**-0.5, plan.eps
        self.at, self.call = places(self.work), np.zeros(CALL, I)
        self.work_at, self.call_at = [self.at.ctypes.data, self.at.size], self.call.ctypes.data
        self.logits = torch.from_numpy(self.work.logits)
        self.sizes = [plan.n_heads, plan.n_kv_heads, size, self.own, self.part, t.most, nw]
        self.cos = self.sin = np.zeros(0, F)
        self.walk = walk()
        self.busy = threading.Lock()
        self.angles_at, self.places = [0] * 4, 0

    def angles(self, place: int) -> None:
        """Cosines and sines reach `place`."""
        if place >= self.places and any(m.rotary for layer in self.plan.layers for m in layer.mixers):
            cos, sin = self.plan.angles(place + 1)
            self.places = len(cos)
            self.cos, self.sin = (flat(t.float().contiguous()) for t in (cos, sin))
            self.angles_at = [self.cos.ctypes.data, self.cos.size, self.sin.ctypes.data, self.sin.size]

    def failure(self) -> str:
        """What was not finite."""
        if self.work.info[step.BAD] == 2:
            return "the gates of an attention: counts must be finite; got NaN or infinity"
        name = self.tables.names[self.work.info[step.SITE]]
        return f"site {name}: counts must be finite and fit 32 bits; nothing was wrapped"

    def start(self, position: int, states: States) -> NumbaStream:
        """A stream of its own."""
        return NumbaStream(self, position, states)


def copied(t: Tensor) -> Any:
    """The numbers of a tensor in memory of our own."""
    out = zeros((t.numel(),))
    out[:] = t.reshape(-1).numpy()
    return out


class NumbaStream:
    """`fastsnn_core.lowering.Stream`."""

    def __init__(self, stepper: NumbaStepper, position: int, states: States) -> None:
        self.stepper, self.position, self.failure = stepper, position, ""
        mixers = [m for layer in stepper.plan.layers for m in layer.mixers]
        given = [pair for layer in states for pair in layer]
        self.state = np.zeros((max(1, len(mixers)), 4), I)
        self.memory: list[Any] = [None] * len(mixers)
        for m, (mixer, (first, second)) in enumerate(zip(mixers, given, strict=True)):
            if mixer.feature:
                self.keep(m, *(copied(x) for x in (first, second)))
            else:
                self.fill(m, first, second)
        self.endless = [m for m, mixer in enumerate(mixers) if not mixer.feature and not mixer.window]
        self.refresh()

    def keep(self, m: int, first: Any, second: Any) -> None:
        """Hold a mixer's memory, and write down where it is."""
        self.memory[m] = (first, second)
        self.state[m, :2] = first.ctypes.data, second.ctypes.data

    def fill(self, m: int, keys: Tensor, values: Tensor) -> None:
        """A cache with room for more than it holds: `keys`, `values` ``[n, G, K]``, oldest first."""
        held, groups, size = keys.shape
        window = self.mixers()[m].window
        room = -(-(window or 2 * held + KEYS) // KEYS) * KEYS
        k, v = zeros((groups, room // KEYS, size, KEYS)), zeros((groups, room, size))
        padded = np.zeros((groups, room, size), F)
        padded[:, :held], v[:, :held] = keys.transpose(0, 1).numpy(), values.transpose(0, 1).numpy()
        k[:] = padded.reshape(groups, room // KEYS, KEYS, size).swapaxes(2, 3)
        self.keep(m, k.reshape(-1), v.reshape(-1))
        self.state[m, 2:] = room, held

    def mixers(self) -> list[Mixer]:
        """In the order of the state's rows."""
        return [m for layer in self.stepper.plan.layers for m in layer.mixers]

    def refresh(self) -> None:
        """Scores need as much room as the longest cache."""
        self.score = np.zeros(self.stepper.workers * int(self.state[:, 2].max(initial=0)) + 1, F)
        self.places = [n for x in (self.state, self.score) for n in (x.ctypes.data, x.size)]

    def step(self, token: int) -> Tensor:
        """Logits after `token`."""
        s = self.stepper
        if not 0 <= token < len(s.plan.table):
            raise FastSNNError(f"token {token} is outside 0 … {len(s.plan.table) - 1}")
        if self.failure:
            raise FastSNNError(f"this stream ended with an error: {self.failure}")
        with s.busy:
            self.grow()
            s.angles(self.position)
            s.work.sync.fill(0)
            s.work.info.fill(0)
            s.call[:] = [*s.work_at, *self.places, *s.angles_at, token, self.position, *s.sizes]
            _step(s.walk, s.call_at)
            if s.work.info[step.BAD]:
                self.failure = s.failure()
                raise FastSNNError(self.failure)
            logits = s.logits.clone()
        self.position += 1
        self.state[:, step.SEEN] += 1
        return logits

    def grow(self) -> None:
        """Caches without a window get twice the room when they are full."""
        for m in self.endless:
            if self.state[m, step.SEEN] == self.state[m, step.ROOM]:
                self.fill(m, *self.held(m))
                self.refresh()

    @property
    def nbytes(self) -> int:
        """Memory of the states."""
        return sum(array.nbytes for both in self.memory for array in both)

    def held(self, m: int) -> tuple[Tensor, Tensor]:
        """A mixer's state, out of the kernel's form."""
        plan, mixer = self.stepper.plan, self.mixers()[m]
        groups, size = plan.n_kv_heads, plan.head_dim
        first, second = self.memory[m]
        if mixer.feature:
            return torch.from_numpy(first.reshape(groups, size, size).copy()), torch.from_numpy(
                second.reshape(groups, size).copy()
            )
        room, seen = (int(n) for n in self.state[m, 2:])
        held = min(seen, mixer.window) if mixer.window else seen
        slots = np.arange(seen - held, seen) % room
        k = first.reshape(groups, room // KEYS, size, KEYS).swapaxes(2, 3).reshape(groups, room, size)
        v = second.reshape(groups, room, size)
        return tuple(torch.from_numpy(x[:, slots].swapaxes(0, 1).copy()) for x in (k, v))

    def states(self) -> States:
        """All states, per layer."""
        out, m = [], 0
        for layer in self.stepper.plan.layers:
            out.append([self.held(m + i) for i in range(len(layer.mixers))])
            m += len(layer.mixers)
        return out
