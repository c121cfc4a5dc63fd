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
from fastsnn_integer.frames import ConvStage, FramePlan, LinearStage, NeuronStage
from fastsnn_kernel_numba.array_views import view
from fastsnn_kernel_numba.conv_events import WORTH, _add_weights, conv_break_even, largest_row_sum
from fastsnn_kernel_numba.layout import FLOAT, INT8
from fastsnn_kernel_numba.lif_scan import LifConstants, _fire
from fastsnn_kernel_numba.max_pool import _pool_pair
from fastsnn_kernel_numba.numba_runtime import compile, flat, scratch
from fastsnn_modules.operands import guarded

U = np.uint64
F = np.float32
NEURON, CONV, LINEAR, POOL = range(4)
KIND, INSIDE, FROM, TO, STRIDES, WEIGHT, SCALE, BIAS, ROWS = 0, 1, 7, 8, 9, 13, 14, 15, 16
COLUMNS = 26  # of the table; ROWS … ROWS + 8 are the window: sizes, strides, paddings, dilations, groups
BETA, THETA, LOW, HIGH, GAIN, HEAVISIDE, HARD = range(7)
REST = 15  # frames that the layers take one by one after one that was busy
SHARES = "{} of the inputs of its layers spiked: only their weight rows are added"
SMALLEST_FLOAT = F(-np.inf)


@compile
def _count_frame(x, ox, c, oc, v, ov, n, gain, k):  # type: ignore[no-untyped-def]
    """One step of n neurons; is any count no number?"""
    odd = np.int32(0)
    for d in range(n):
        z = x[ox + d] if gain == 1 else gain * x[ox + d]
        h = k.beta * v[ov + d] + z / k.theta
        count, v[ov + d] = _fire(h, k)
        c[oc + d] = count
        odd |= np.int32(count != count)
    return odd != 0


@compile
def _add_frame_events(counts, at, sc, sp, row, weight, sums):  # type: ignore[no-untyped-def]
    """All outputs of one frame: sums ``[H', W' in reverse, O]``; how many events there were."""
    channels, height, width, tall, high, wide = row[1], row[2], row[3], row[4], row[5], row[6]
    rows, columns, sy, sx = row[ROWS], row[ROWS + 1], row[ROWS + 2], row[ROWS + 3]
    ay, ax, dy, dx, groups = row[ROWS + 4], row[ROWS + 5], row[ROWS + 6], row[ROWS + 7], row[ROWS + 8]
    inside, outside, events = channels // groups, tall // groups, 0
    simple = sy == 1 and sx == 1 and dy == 1 and dx == 1 and groups == 1
    sums[: U(high * wide * tall)] = 0
    for y in range(height):
        top, end = max(0, y + ay - high + 1), min(rows, y + ay + 1)
        for x in range(width):
            b = max(0, x + ax - wide + 1)
            many = U(max(min(columns, x + ax + 1) - b, 0) * tall)
            for c in range(channels):
                n = np.int32(counts[U(at + (y * width + x) * sp + c * sc)])
                if n == 0:
                    continue
                events += 1
                if simple:
                    for a in range(top, end):
                        k = U(((c * rows + a) * columns + b) * tall)
                        to = U(((y + ay - a) * wide + wide - 1 - x - ax + b) * tall)
                        _add_weights(weight, k, n, sums, to, many)
                    continue
                low = c // inside * outside
                for a in range(rows):
                    oy = y + ay - a * dy
                    if oy < 0 or oy % sy or oy // sy >= high:
                        continue
                    for e in range(columns):
                        ox = x + ax - e * dx
                        if ox >= 0 and ox % sx == 0 and ox // sx < wide:
                            k = U(((c % inside * rows + a) * columns + e) * tall + low)
                            to = U((oy // sy * wide + wide - 1 - ox // sx) * tall + low)
                            _add_weights(weight, k, n, sums, to, U(outside))
    return events


@compile
def _add_vector_events(counts, at, sc, sp, channels, places, weight, tall, sums):  # type: ignore[no-untyped-def]
    """A linear layer's sums ``[O]`` over all numbers in the order [C, P]; how many events there were."""
    events = 0
    sums[: U(tall)] = 0
    for p in range(places):
        for c in range(channels):
            n = np.int32(counts[U(at + p * sp + c * sc)])
            if n != 0:
                events += 1
                _add_weights(weight, U((c * places + p) * tall), n, sums, U(0), U(tall))
    return events


@compile
def _scale_frame(sums, high, wide, tall, scale, v, bias, out, to):  # type: ignore[no-untyped-def]
    """float(sum) · scale · V (+ bias), channels inside; places of a line come in reverse."""
    for y in range(high):
        for x in range(wide):
            s, o = U((y * wide + wide - 1 - x) * tall), U(to + (y * wide + x) * tall)
            if len(bias):
                for j in range(U(tall)):
                    out[o + j] = F(sums[s + j]) * scale[j] * v + bias[j]
            else:
                for j in range(U(tall)):
                    out[o + j] = F(sums[s + j]) * scale[j] * v


@compile
def _pool_frame(x, at, sc, sp, row, out, to, oc, op, place):  # type: ignore[no-untyped-def]
    channels, height, width, high, wide = row[1], row[2], row[3], row[5], row[6]
    rows, columns, sy, sx = row[ROWS], row[ROWS + 1], row[ROWS + 2], row[ROWS + 3]
    ay, ax, dy, dx = row[ROWS + 4], row[ROWS + 5], row[ROWS + 6], row[ROWS + 7]
    pairs = rows == 2 and columns == 2 and sy == 2 and sx == 2 and ay == 0 and ax == 0 and dy == 1 and dx == 1
    if pairs and sp == 1 and op == 1:  # planes: as `max_pool` does it
        for c in range(channels):
            for y in range(high):
                line = U(at + c * sc + 2 * y * width)
                _pool_pair(x, line, line + U(width), out, place, U(to + c * oc + y * wide), U(wide))
        return
    for y in range(high):
        for z in range(wide):
            o = to + (y * wide + z) * op
            for c in range(channels):
                out[U(o + c * oc)] = SMALLEST_FLOAT
            for a in range(rows):
                iy = y * sy - ay + a * dy
                if iy < 0 or iy >= height:
                    continue
                for b in range(columns):
                    ix = z * sx - ax + b * dx
                    if ix < 0 or ix >= width:
                        continue
                    i = at + (iy * width + ix) * sp
                    if sc == 1 and oc == 1:
                        for c in range(U(channels)):
                            new, old = x[U(i) + c], out[U(o) + c]
                            out[U(o) + c] = new if new > old else old
                    else:
                        for c in range(channels):
                            new, old = x[U(i + c * sc)], out[U(o + c * oc)]
                            out[U(o + c * oc)] = new if new > old else old


@compile
def _turn(x, at, y, to, channels, places, sc, sp, oc, op):  # type: ignore[no-untyped-def]
    """Numbers of one frame in another order."""
    for c in range(channels):
        for p in range(places):
            y[U(to + c * oc + p * op)] = x[U(at + c * sc + p * sp)]


@compile
def _run_frames(x, given_steps, steps, table, numbers, given, left, arena, narrow, broad, place, events_of, out):  # type: ignore[no-untyped-def]
    """Returns whether every count was a number."""
    at = 0
    for s in range(len(table)):
        row = table[s]
        if row[KIND] == NEURON:
            places = row[2] * row[3]
            _turn(given, at, left, at, row[1], places, places, 1, row[STRIDES], row[STRIDES + 1])
            at += row[1] * places
        elif row[KIND] == CONV:  # may its sums have 16 bits?
            rows = row[1] // row[ROWS + 8] * row[ROWS] * row[ROWS + 1]
            weight = view(row[WEIGHT], rows * row[4], INT8)
            numbers[s, 1] = largest_row_sum(weight, rows, row[4], broad) * numbers[s, 2] < 32768
    for t in range(steps):
        at, counted = 0, False
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
            if row[KIND] == NEURON:
                k = numbers[s]
                one = F(1)
                how = LifConstants(
                    k[BETA], k[THETA], k[LOW], k[HIGH], one, one, one, one, one, F(0), one,
                    k[HEAVISIDE] != 0, k[HARD] != 0, False,
                )  # fmt: skip
                n = U(channels * places)
                if _count_frame(source, U(begin), arena, U(to), left, U(at), n, k[GAIN], how):
                    return False
                at += channels * places
            elif row[KIND] == POOL:
                _pool_frame(source, begin, sc, sp, row, arena, to, oc, op, place)
            else:
                high, wide, v = row[5], row[6], numbers[s, 0]
                scale = view(row[SCALE], tall, FLOAT)
                bias = view(row[BIAS], tall if row[BIAS] else 0, FLOAT)
                if row[KIND] == LINEAR:
                    weight = view(row[WEIGHT], channels * places * tall, INT8)
                    events = _add_vector_events(source, begin, sc, sp, channels, places, weight, tall, broad)
                    _scale_frame(broad, 1, 1, tall, scale, v, bias, arena, to)
                else:
                    rows = channels // row[ROWS + 8] * row[ROWS] * row[ROWS + 1]
                    weight = view(row[WEIGHT], rows * tall, INT8)
                    if numbers[s, 1] != 0:
                        events = _add_frame_events(source, begin, sc, sp, row, weight, narrow)
                        _scale_frame(narrow, high, wide, tall, scale, v, bias, arena, to)
                    else:
                        events = _add_frame_events(source, begin, sc, sp, row, weight, broad)
                        _scale_frame(broad, high, wide, tall, scale, v, bias, arena, to)
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
                _turn(left, at, arena, 0, row[1], places, 1, row[1], places, 1)
                left[U(at) : U(at + n)] = arena[: U(n)]
            at += n
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
            else:
                row[KIND] = POOL
                row[ROWS : ROWS + 8] = *stage.kernel, *stage.stride, *stage.padding, *stage.dilation
            row[STRIDES + 2 : STRIDES + 4] = (1, o) if inner else (high * wide, 1)
        self.rest, self.limits = 0, list[float]()
        self.sums, self.size = sums, at + math.prod(plan.shapes[-1])
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
    given = torch.cat(states) if len(states) != 1 else states[0].contiguous()
    left, out = torch.empty_like(given), torch.empty(steps, *program.out)
    events = np.zeros(len(program.table), np.int64)
    good = _run_frames(
        flat(x.contiguous()), len(x), steps, program.table, program.numbers, flat(given), flat(left),
        scratch("frames", program.size, np.float32), scratch("frames", program.sums, np.int16),
        scratch("frames", program.sums, np.int32), scratch("frames", program.size, np.uint8), events, flat(out),
    )  # fmt: skip
    if not good:
        return NotImplemented
    shares = tuple(int(events[s]) / max(1, steps * math.prod(plan.shapes[s])) for s in program.layers)
    limits = program.break_even(plan)
    if any(share > limit for share, limit in zip(shares, limits)):
        program.rest = REST
    record_path("frame_run", "numba: events", SHARES.format(", ".join(f"{share:.1%}" for share in shares)))
    return out, left.split(plan.widths), shares
