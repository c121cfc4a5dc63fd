"""Twin of `fastsnn_events.count_conv.count_conv_naive`: convolutions of counts with INT8 weights, by events or dense.

*events*: every count that is not 0 adds its weight rows onto sums of all outputs, places outside, channels inside. Sums
have 16 bits where max|c| · max_o Σ|W[o]| proves that enough, else 32. Places of a line lie in reverse, so that the
window's columns, one place further to the left each, lie side by side as their weight rows do: where stride and
dilation are 1, a line of the window is one addition of contiguous numbers.
*dense*: torch's float32 convolution where no sum of magnitudes reaches 2^24 (every operation is then on whole numbers
that float32 holds), checked once for each shape; else the windows as rows of an exact integer product.

Which it is, the measured share of counts that are not silent says: below `conv_break_even` events win. That is measured
once per shape and process, for products of at least `WORTH` multiplications; smaller ones, where neither way costs
anything, take `EVENT_SHARE`. Both give the same integers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core.ops.dispatch import record_path
from fastsnn_events.count_conv import ConvWindow, count_conv_naive
from fastsnn_events.linear import whole
from fastsnn_kernel_numba.buffer_pool import empty
from fastsnn_kernel_numba.integer_linear import dense_product
from fastsnn_kernel_numba.numba_runtime import Threaded, compile, flat, scratch, workers
from fastsnn_modules.operands import guarded

U = np.uint64
EVENT_SHARE, WORTH = 0.3, 1 << 19
IN_FLOAT32, SPREAD = 1 << 24, 16
SPARSE = "{:.1%} of the inputs spiked, fewer than {:.1%}: only their weight rows are added"
BUSY = "{:.1%} of the inputs spiked, {:.1%} or more: a dense product is faster"
OUTPUT_MAJOR = "weights are stored output-major, so an event has no row to read"
TOO_LARGE = "counts are so large that sums need more than 32 bits"


@compile
def _look_at_counts(counts):  # type: ignore[no-untyped-def]
    """Events, max|c| (infinite where one is), and whether all counts are whole."""
    events, largest, odd = np.int32(0), np.float32(0), np.int32(0)
    for i in range(U(len(counts))):
        c = counts[i]
        events += np.int32(c != 0)
        odd |= np.int32(np.rint(c) != c)
        largest = max(largest, abs(c))
    return events, largest, odd == 0


@compile
def largest_row_sum(weight, rows, tall, sums):  # type: ignore[no-untyped-def]
    """max_o Σ |W[:, o]| of weights ``[rows, tall]``: no sum of counts up to c is larger than c times that."""
    for o in range(U(tall)):
        sums[o] = 0
    for row in range(rows):
        k = U(row * tall)
        for o in range(U(tall)):
            sums[o] += abs(np.int32(weight[k + o]))
    return sums[: U(tall)].max() if tall else np.int32(0)


@compile
def _add_weights(weight, k, n, sums, to, width):  # type: ignore[no-untyped-def]
    if n == 1:
        for o in range(width):
            sums[to + o] = sums.dtype.type(sums[to + o] + sums.dtype.type(weight[k + o]))
    else:
        for o in range(width):
            sums[to + o] = sums.dtype.type(sums[to + o] + sums.dtype.type(n) * sums.dtype.type(weight[k + o]))


@compile
def add_lines_of_events(counts, at, shape, window, weight, sums):  # type: ignore[no-untyped-def]
    """All outputs of one image at stride and dilation 1, one group: a line of the window is one addition."""
    channels, height, width, high, wide, tall = shape
    rows, columns, _, _, ay, ax, _, _, _ = window
    for c in range(channels):
        for y in range(height):
            line, top, end = at + (c * height + y) * width, max(0, y + ay - high + 1), min(rows, y + ay + 1)
            for x in range(width):
                n = np.int32(counts[U(line + x)])
                if n == 0:
                    continue
                b = max(0, x + ax - wide + 1)
                many = U(max(min(columns, x + ax + 1) - b, 0) * tall)
                for a in range(top, end):
                    k = U(((c * rows + a) * columns + b) * tall)
                    to = U(((y + ay - a) * wide + wide - 1 - x - ax + b) * tall)
                    _add_weights(weight, k, n, sums, to, many)


@compile
def add_places_of_events(counts, at, shape, window, weight, sums, first, last):  # type: ignore[no-untyped-def]
    """Outputs first … last of one image, any window: a place of the window is one addition."""
    channels, height, width, high, wide, tall = shape
    rows, columns, sy, sx, ay, ax, dy, dx, groups = window
    inside, outside, many = channels // groups, tall // groups, last - first
    for c in range(channels):
        low, end = max(first, c // inside * outside), min(last, (c // inside + 1) * outside)
        if low >= end:
            continue
        for y in range(height):
            line = at + (c * height + y) * width
            for x in range(width):
                n = np.int32(counts[U(line + x)])
                if n == 0:
                    continue
                for a in range(rows):
                    oy = y + ay - a * dy
                    if oy < 0 or oy % sy or oy // sy >= high:
                        continue
                    for b in range(columns):
                        ox = x + ax - b * dx
                        if ox >= 0 and ox % sx == 0 and ox // sx < wide:
                            k = U(((c % inside * rows + a) * columns + b) * tall + low)
                            to = U((oy // sy * wide + wide - 1 - ox // sx) * many + low - first)
                            _add_weights(weight, k, n, sums, to, U(end - low))


@Threaded
def _events(counts, images, shape, window, weight, scale, threshold, blocks, memory, out, nw):  # type: ignore[no-untyped-def]
    channels, height, width, high, wide, tall = shape
    size, places, tasks = channels * height * width, high * wide, images * blocks
    simple = window[2] == 1 and window[3] == 1 and window[6] == 1 and window[7] == 1 and window[8] == 1
    for worker in prange(nw):
        sums = memory[worker * places * tall : (worker + 1) * places * tall]
        for task in range(worker * tasks // nw, (worker + 1) * tasks // nw):
            image, block = task // blocks, task % blocks
            first, last = block * tall // blocks, (block + 1) * tall // blocks
            many = U(last - first)
            sums[: U(places) * many] = 0
            if simple and many == U(tall):
                add_lines_of_events(counts, image * size, shape, window, weight, sums)
            else:
                add_places_of_events(counts, image * size, shape, window, weight, sums, first, last)
            v = threshold[image if len(threshold) > 1 else 0]
            for y in range(high):
                for x in range(0, wide, SPREAD):  # few places at a time, which stay in cache
                    to, begin = U((image * tall + first) * places + y * wide + x), U(y * wide + wide - 1 - x)
                    for o in range(many):
                        s = scale[U(first) + o]
                        for p in range(U(min(SPREAD, wide - x))):
                            out[to + o * U(places) + p] = np.float32(sums[(begin - p) * many + o]) * s * v


def conv_by_events(
    counts: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, window: ConvWindow, narrow: bool = False
) -> Tensor:
    """Float32 ``[N, O, H', W']`` of whole float32 counts whose sums fit 32 bits, or 16 (`narrow`); event-major."""
    n, channels, height, width = counts.shape
    tall, _, rows, columns = weight.shape
    high, wide = window.sizes((height, width), (rows, columns))
    out, nw = empty((n, tall, high, wide), torch.float32), workers()
    memory = scratch("conv", nw * high * wide * tall, np.int16 if narrow else np.int32)
    _events.on(
        nw,
        flat(counts), n, (channels, height, width, high, wide, tall),
        (rows, columns, *window.stride, *window.padding, *window.dilation, window.groups),
        flat(weight.permute(1, 2, 3, 0)), flat(scale), flat(threshold), 1 if n >= nw else nw, memory, flat(out),
    )  # fmt: skip
    return out


def conv_in_float32(counts: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, window: ConvWindow) -> Tensor:
    """The same where float32 holds every sum of magnitudes."""
    w = window
    out = F.conv2d(counts, weight.to(torch.float32), None, w.stride, w.padding, w.dilation, w.groups)
    return out.mul_(scale[:, None, None]).mul_(threshold[:, None, None, None])


def conv_of_windows(counts: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, window: ConvWindow) -> Tensor:
    """The same of any whole counts: one exact integer product for each group of channels."""
    n, (high, wide) = len(counts), window.sizes(tuple(counts.shape[2:]), tuple(weight.shape[2:]))
    seen = F.unfold(counts, tuple(weight.shape[2:]), window.dilation, window.padding, window.stride)
    rows = seen.transpose(1, 2).reshape(n * high * wide, -1)
    parts = [
        dense_product(part.contiguous(), w.flatten(1)).to(torch.int64)
        for part, w in zip(rows.chunk(window.groups, 1), weight.chunk(window.groups))
    ]
    sums = torch.cat(parts, 1).to(torch.float32)
    sums = sums.view(n, high * wide, -1).transpose(1, 2).reshape(n, -1, high, wide)
    return sums * scale[:, None, None] * threshold[:, None, None, None]


@guarded("count_conv")
def count_conv(counts: Tensor, weight: Tensor, scale: Tensor, threshold: Tensor, window: ConvWindow) -> Any:
    """By events where few inputs spiked."""
    if scale.dtype != torch.float32 or threshold.dtype != torch.float32 or not counts.numel() or not len(weight):
        return NotImplemented
    if counts.dtype != torch.float32:
        counts = whole(counts, "counts").to(torch.int64)
        if int(counts.max()) >= IN_FLOAT32 or int(counts.min()) <= -IN_FLOAT32:
            return NotImplemented
        counts = counts.to(torch.float32)
    counts, scale, threshold = (t.detach().contiguous() for t in (counts, scale, threshold))
    events, most, all_whole = _look_at_counts(flat(counts))
    if not all_whole or most >= 1 << 40:
        return NotImplemented  # which refuses fractions, what is not finite, and sums beyond 64 bits
    rows, share, why = weight.permute(1, 2, 3, 0), events / counts.numel(), OUTPUT_MAJOR
    limit = conv_break_even(counts, weight, window)
    by_row = rows.is_contiguous()
    flat_rows = flat(rows.contiguous())
    reach = int(most) * int(
        largest_row_sum(flat_rows, weight[0].numel(), len(weight), scratch("reach", len(weight), np.int32))
    )
    if by_row and share < limit and reach < 1 << 31:
        record_path("count_conv", "numba: events", SPARSE.format(share, limit))
        return conv_by_events(counts, weight, scale, threshold, window, reach < 1 << 15)
    if by_row:
        why = BUSY.format(share, limit) if share >= limit else TOO_LARGE
    record_path("count_conv", "numba: dense", why)
    if reach < IN_FLOAT32 and exact_in_float32(tuple(counts.shape[1:]), tuple(weight.shape), window):
        return conv_in_float32(counts, weight, scale, threshold, window)
    return conv_of_windows(counts, weight, scale, threshold, window)


_found: dict[tuple[Any, ...], Any] = {}


def conv_break_even(counts: Tensor, weight: Tensor, window: ConvWindow) -> float:
    """Share of active inputs from which the dense way is faster, for images and weights of these shapes."""
    image, size = tuple(counts.shape[1:]), tuple(weight.shape)
    places = math.prod(window.sizes(image[1:], size[2:]))
    if places * weight.numel() < WORTH or not weight.permute(1, 2, 3, 0).is_contiguous():
        return EVENT_SHARE
    key = (len(counts) > 1, image, size, window, workers())
    if key not in _found:
        _found[key] = _measured_share(min(len(counts), 4), image, weight, window)
    return float(_found[key])


def _measured_share(images: int, image: tuple[int, ...], weight: Tensor, window: ConvWindow) -> float:
    """Time of events at two shares and of the dense way; where the line through the two meets the third."""
    generator = torch.Generator().manual_seed(0)
    scale, threshold = torch.ones(len(weight)), torch.ones(1)
    dense = conv_in_float32 if exact_in_float32(image, tuple(weight.shape), window) else conv_of_windows

    def seconds(way: Callable[..., Any], share: float) -> float:
        drawn = (torch.rand(images, *image, generator=generator) < share).float()
        times = []
        for _ in range(6):
            began = time.perf_counter()
            way(drawn, weight, scale, threshold, window)
            times.append(time.perf_counter() - began)
        return min(times[1:])

    def events(*args: Any) -> Tensor:
        return conv_by_events(*args, True)

    few, many = seconds(events, 0.05), seconds(events, 0.25)
    slope = max((many - few) / 0.2, 1e-9)
    return min(max(0.05 + (seconds(dense, 0.25) - few) / slope, 0.01), 2.0)


def exact_in_float32(image: tuple[int, ...], size: tuple[int, ...], window: ConvWindow) -> bool:
    """Tried once per shape: is torch's convolution of whole numbers here a sum of products, no transform?"""
    key = (image, size, window)
    if key not in _found:
        draw = torch.Generator().manual_seed(1)
        weight = torch.randint(-127, 128, size, generator=draw).to(torch.int8)
        most = max(1, (IN_FLOAT32 - 1) // (127 * max(1, math.prod(size[1:]))))
        counts = torch.randint(0, min(most, 1000) + 1, (1, *image), generator=draw).float()
        scale, threshold = torch.ones(size[0]), torch.ones(1)
        found = conv_in_float32(counts, weight, scale, threshold, window)
        _found[key] = torch.equal(found, count_conv_naive(counts, weight, scale, threshold, window))
    return bool(_found[key])
