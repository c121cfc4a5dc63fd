"""Twin of `fastsnn_integer.frames.frame_run_naive`: a stream of frames through neurons and INT8 layers in one call.

Stages are rows of a table, so that one compiled function runs every network. Behind the first layer, numbers lie with
channels inside (a place's outputs are contiguous), where weight rows are added and neurons count; only what comes in
and goes out has the order ``[C, H, W]``. Layers go by events (`conv_events`); what share of their inputs spiked is
handed back, and whoever calls takes the layers one by one, some of them dense, where it is large.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.ops.dispatch import record_path
from fastsnn_integer.frames import ConvStage, FramePlan, LinearStage, NeuronStage, PoolStage
from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.conv_events import WORTH, conv_break_even, largest_row_sum
from fastsnn_kernel_numba.frame_stages import (
    ROWS,
    _add_frame_events,
    _add_vector_events,
    _count_frame,
    _grows,
    _pool_frame,
    _pool_sums,
    _scale_frame,
    _turn,
)
from fastsnn_kernel_numba.layout import FLOAT, INT8
from fastsnn_kernel_numba.lif_scan import LifConstants
from fastsnn_kernel_numba.numba_runtime import compile, scratch
from fastsnn_modules.operands import guarded

U = np.uint64
F = np.float32
NEURON, CONV, LINEAR, POOL = range(4)
KIND, FROM, TO, STRIDES, WEIGHT, SCALE, BIAS = 0, 7, 8, 9, 13, 14, 15
POOLED = 25  # is the stage behind a convolution a pool without padding?
COLUMNS = 26  # of the table; `ROWS` … `ROWS` + 8 are the window: sizes, strides, paddings, dilations, groups
BETA, THETA, LOW, HIGH, GAIN, HEAVISIDE, HARD = range(7)
REST = 15  # frames that the layers take one by one after one that was busy
SHARES = "{} of the inputs of its layers spiked: only their weight rows are added"


@compile
def _run_frames(addresses, given_steps, steps, table, numbers, arena, narrow, broad, pairs, found, events_of):  # type: ignore[no-untyped-def]
    """`addresses`: x, what comes out, states before, states behind. Returns whether every count was a number."""
    row, last = table[0], table[len(table) - 1]
    x = view(addresses[0], given_steps * row[1] * row[2] * row[3], FLOAT)
    out = view(addresses[1], steps * last[4] * last[5] * last[6], FLOAT)
    neurons = (len(addresses) - 2) // 2
    at = 0
    for s in range(len(table)):
        row = table[s]
        if row[KIND] == NEURON:
            places = row[2] * row[3]
            given = view(addresses[2 + at], row[1] * places, FLOAT)
            left = view(addresses[2 + neurons + at], row[1] * places, FLOAT)
            _turn(given, 0, left, 0, row[1], places, places, 1, row[STRIDES], row[STRIDES + 1])
            at += 1
        elif row[KIND] == CONV:  # may its sums have 16 bits?
            rows = row[1] // row[ROWS + 8] * row[ROWS] * row[ROWS + 1]
            weight = view(row[WEIGHT], rows * row[4], INT8)
            numbers[s, 1] = largest_row_sum(weight, rows, row[4], broad) * numbers[s, 2] < 32768
    for t in range(steps):
        at, counted, pooled = 0, False, False
        for s in range(len(table)):
            row = table[s]
            channels, places, tall = row[1], row[2] * row[3], row[4]
            sc, sp, oc, op = row[STRIDES], row[STRIDES + 1], row[STRIDES + 2], row[STRIDES + 3]
            source, begin, to = arena, row[FROM], row[TO]
            if s == 0:
                source, begin = x, min(t, given_steps - 1) * channels * places
            counted |= row[KIND] == NEURON
            if not counted and t >= given_steps:
                continue  # the frame that was given is shown again
            if pooled:  # with the sums of the layer in front
                pooled = False
                continue
            if row[KIND] == NEURON:
                k = numbers[s]
                one = F(1)
                how = LifConstants(
                    k[BETA], k[THETA], k[LOW], k[HIGH], one, one, one, one, one, F(0), one,
                    k[HEAVISIDE] != 0, k[HARD] != 0, False,
                )  # fmt: skip
                left = view(addresses[2 + neurons + at], channels * places, FLOAT)
                if _count_frame(source, U(begin), arena, U(to), left, U(0), U(channels * places), k[GAIN], how):
                    return False
                at += 1
            elif row[KIND] == POOL:
                _pool_frame(source, begin, sc, sp, row, arena, to, oc, op, pairs)
            else:
                wide, v = row[6], numbers[s, 0]
                scale = view(row[SCALE], tall, FLOAT)
                bias = view(row[BIAS], tall if row[BIAS] else 0, FLOAT)
                if row[KIND] == LINEAR:
                    weight = view(row[WEIGHT], channels * places * tall, INT8)
                    events = _add_vector_events(source, begin, sc, sp, channels, places, weight, tall, broad, found)
                    _scale_frame(broad, 1, 1, tall, scale, v, bias, arena, to)
                else:
                    rows = channels // row[ROWS + 8] * row[ROWS] * row[ROWS + 1]
                    weight = view(row[WEIGHT], rows * tall, INT8)
                    pooled = row[POOLED] != 0 and _grows(scale, v)
                    behind = table[s + 1 if pooled else s]
                    if numbers[s, 1] != 0:
                        events = _add_frame_events(source, begin, sc, sp, row, weight, narrow, found)
                        if pooled:
                            _pool_sums(narrow, wide, tall, behind)
                        _scale_frame(narrow, behind[5], behind[6], tall, scale, v, bias, arena, behind[TO])
                    else:
                        events = _add_frame_events(source, begin, sc, sp, row, weight, broad, found)
                        if pooled:
                            _pool_sums(broad, wide, tall, behind)
                        _scale_frame(broad, behind[5], behind[6], tall, scale, v, bias, arena, behind[TO])
                events_of[s] += events
        row = table[len(table) - 1]
        tall, places = row[4], row[5] * row[6]
        _turn(arena, row[TO], out, t * tall * places, tall, places, row[STRIDES + 2], row[STRIDES + 3], places, 1)
    at = 0
    for s in range(len(table)):
        row = table[s]
        if row[KIND] == NEURON:
            places = row[2] * row[3]
            n = row[1] * places
            if row[STRIDES] == 1 and places > 1:
                left = view(addresses[2 + neurons + at], n, FLOAT)
                _turn(left, 0, arena, 0, row[1], places, 1, row[1], places, 1)
                left[:] = arena[: U(n)]
            at += 1
    return True


class _Program:
    """A plan as the table that `_run_frames` reads; addresses of the plan's own tensors, which it keeps alive."""

    def __init__(self, plan: FramePlan) -> None:
        self.table = np.zeros((len(plan.stages), COLUMNS), np.int64)
        self.numbers = np.zeros((len(plan.stages), 7), np.float32)
        self.layers = [s for s, stage in enumerate(plan.stages) if isinstance(stage, ConvStage | LinearStage)]
        self.why = ""
        inner, at, theta, largest, sums = False, 0, 1.0, 0.0, 1
        for s, stage in enumerate(plan.stages):
            row, (c, h, w), (o, high, wide) = self.table[s], plan.shapes[s], plan.shapes[s + 1]
            row[1:7] = c, h, w, o, high, wide
            row[FROM], row[TO] = at, at + c * h * w
            at += c * h * w
            row[STRIDES : STRIDES + 2] = (1, c) if inner else (h * w, 1)
            if isinstance(stage, NeuronStage):
                rule, theta, largest = stage.rule, stage.theta, stage.largest
                row[KIND] = NEURON
                numbers = rule.beta, theta, rule.lo, rule.hi, stage.gain, rule.heaviside, rule.hard
                self.numbers[s] = numbers
            elif isinstance(stage, ConvStage | LinearStage):
                inner, weight = True, stage.weight
                order = weight.T if isinstance(stage, LinearStage) else weight.permute(1, 2, 3, 0)
                vectors = [stage.scale] if stage.bias is None else [stage.scale, stage.bias]
                if not all(t.is_contiguous() for t in (order, *vectors)):
                    self.why = "weights stored output-major, or with gaps"
                if weight[0].numel() * 128 * largest >= 1 << 31:
                    self.why = "sums of more than 32 bits"
                row[KIND] = LINEAR if isinstance(stage, LinearStage) else CONV
                row[WEIGHT], row[SCALE] = weight.data_ptr(), stage.scale.data_ptr()
                row[BIAS] = 0 if stage.bias is None else stage.bias.data_ptr()
                self.numbers[s, 0], self.numbers[s, 2] = theta, largest
                sums = max(sums, o * high * wide)
                if isinstance(stage, ConvStage):
                    k = stage.window
                    row[ROWS : ROWS + 2] = weight.shape[2:]
                    row[ROWS + 2 : ROWS + 9] = *k.stride, *k.padding, *k.dilation, k.groups
                    behind = plan.stages[s + 1] if s + 1 < len(plan.stages) else None
                    row[POOLED] = isinstance(behind, PoolStage) and behind.padding == (0, 0)
            else:
                row[KIND] = POOL
                row[ROWS : ROWS + 8] = *stage.kernel, *stage.stride, *stage.padding, *stage.dilation
            row[STRIDES + 2 : STRIDES + 4] = (1, o) if inner else (high * wide, 1)
        self.rest, self.limits = 0, list[float]()
        self.sums, self.size = sums, at + math.prod(plan.shapes[-1])
        self.pairs = max(math.prod(shape) // 2 for shape in plan.shapes)
        self.longest = max(max(c, h * w) for c, h, w in plan.shapes)
        self.inputs = [math.prod(plan.shapes[s]) for s in self.layers]
        self.out = plan.shapes[-1]

    def break_even(self, plan: FramePlan) -> list[float]:
        """Share of active inputs of each layer from which it is faster dense; 1 for those that are small anyway."""
        if not self.limits:
            for s in self.layers:
                stage, limit = plan.stages[s], 1.0
                if isinstance(stage, ConvStage) and math.prod(plan.shapes[s + 1][1:]) * stage.weight.numel() >= WORTH:
                    limit = conv_break_even(torch.zeros(1, *plan.shapes[s]), stage.weight, stage.window)
                self.limits.append(limit)
        return self.limits


_programs: WeakKeyDictionary[FramePlan, _Program] = WeakKeyDictionary()


@guarded("frame_run")
def run_frames(x: Tensor, states: tuple[Tensor, ...], plan: FramePlan, steps: int) -> Any:
    """One thread; what it is not made for (unbounded counts, numbers that are none) is left to the layers."""
    program = _programs.get(plan)
    if program is None:
        program = _programs[plan] = _Program(plan)
    if program.why or x.device.type != "cpu":
        return NotImplemented
    if program.rest:  # busy frames: some layers are faster dense
        program.rest -= 1
        return NotImplemented
    left = tuple([torch.empty(n) for n in plan.widths])
    kept, out = [x.contiguous(), *[v.contiguous() for v in states]], torch.empty(steps, *program.out)
    addresses = np.array([t.data_ptr() for t in (kept[0], out, *kept[1:], *left)])
    events = np.zeros(len(program.table), np.int64)
    good = _run_frames(
        addresses, len(x), steps, program.table, program.numbers, scratch("frames", program.size, np.float32),
        scratch("frames", program.sums, np.int16), scratch("frames", program.sums, np.int32),
        scratch("frame pairs", program.pairs, np.float32), scratch("frame events", program.longest, np.int32), events,
    )  # fmt: skip
    if not good:
        return NotImplemented
    many = events.tolist()
    shares = tuple([many[s] / max(1, steps * n) for s, n in zip(program.layers, program.inputs)])
    for share, limit in zip(shares, program.break_even(plan)):
        if share > limit:
            program.rest = REST
    record_path("frame_run", "numba: events", SHARES.format(", ".join([f"{share:.1%}" for share in shares])))
    return out, left, shares
