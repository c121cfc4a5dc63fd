"""What a frame meets on its way: neurons, layers by events and pools, each one step on rows of the table of `frames`.

Numbers lie in the order ``[C, H, W]`` (planes) or with channels inside; `sc` and `sp` are the strides of a channel and
of a place. A row of the table holds its sizes from 1 on (C, H, W, O, H', W') and its window from `ROWS` on.
"""

from __future__ import annotations

import numpy as np

from fastsnn_kernel_numba.conv_events import _add_weights
from fastsnn_kernel_numba.lif_scan import _fire
from fastsnn_kernel_numba.numba_runtime import compile

U = np.uint64
F = np.float32
ROWS = 16
SMALLEST_FLOAT = F(-np.inf)
TWO = U(2)
LEAST, LARGEST = F(1e-15), F(1e14)  # of a scale: no product of a sum and two of them is 0 or infinite


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
def _where(counts, at, step, n, found):  # type: ignore[no-untyped-def]
    """Which of n counts are not 0, without a branch that hangs on them; how many."""
    k = U(0)
    for i in range(U(n)):
        found[k] = i
        k += U(counts[U(at) + i * U(step)] != 0)
    return k


@compile
def _add_rows_of_64(weight, k, sums, to, blocks):  # type: ignore[no-untyped-def]
    """Rows side by side of as many outputs: no vector of another width, which the next event would wait to read."""
    for b in range(blocks):
        w, s = k + b * U(64), to + b * U(64)
        for o in range(U(64)):
            sums[s + o] = sums.dtype.type(sums[s + o] + sums.dtype.type(weight[w + o]))


@compile
def _add_frame_events(counts, at, sc, sp, row, weight, sums, found):  # type: ignore[no-untyped-def]
    """All outputs of one frame: sums ``[H', W' in reverse, O]``; how many events there were."""
    channels, height, width, tall, high, wide = row[1], row[2], row[3], row[4], row[5], row[6]
    rows, columns, sy, sx = row[ROWS], row[ROWS + 1], row[ROWS + 2], row[ROWS + 3]
    ay, ax, dy, dx, groups = row[ROWS + 4], row[ROWS + 5], row[ROWS + 6], row[ROWS + 7], row[ROWS + 8]
    inside, outside, events = channels // groups, tall // groups, 0
    simple = sy == 1 and sx == 1 and dy == 1 and dx == 1 and groups == 1
    planes, lines, long, one, each = sp == 1, height * width, channels, sp, sc
    if planes:  # numbers that lie side by side are looked at together
        lines, long, one, each = channels, height * width, sc, sp
    sums[: U(high * wide * tall)] = 0
    for line in range(lines):
        begin = at + line * one
        many_events = _where(counts, begin, each, long, found)
        events += np.int64(many_events)
        for e in range(many_events):
            other = np.int64(found[e])
            n = np.int32(counts[U(begin + other * each)])
            c, p = (line, other) if planes else (other, line)
            y = p // width
            x = p - y * width
            if simple:
                b = max(0, x + ax - wide + 1)
                many = U(max(min(columns, x + ax + 1) - b, 0) * tall)
                for a in range(max(0, y + ay - high + 1), min(rows, y + ay + 1)):
                    k = U(((c * rows + a) * columns + b) * tall)
                    to = U(((y + ay - a) * wide + wide - 1 - x - ax + b) * tall)
                    if n == 1 and tall % 64 == 0:
                        _add_rows_of_64(weight, k, sums, to, many // U(64))
                    else:
                        _add_weights(weight, k, n, sums, to, many)
                continue
            low = c // inside * outside
            for a in range(rows):
                oy = y + ay - a * dy
                if oy < 0 or oy % sy or oy // sy >= high:
                    continue
                for d in range(columns):
                    ox = x + ax - d * dx
                    if ox >= 0 and ox % sx == 0 and ox // sx < wide:
                        k = U(((c % inside * rows + a) * columns + d) * tall + low)
                        to = U((oy // sy * wide + wide - 1 - ox // sx) * tall + low)
                        _add_weights(weight, k, n, sums, to, U(outside))
    return events


@compile
def _add_vector_events(counts, at, sc, sp, channels, places, weight, tall, sums, found):  # type: ignore[no-untyped-def]
    """A linear layer's sums ``[O]`` over all numbers in the order [C, P]; how many events there were."""
    events, planes, lines, long, one, each = 0, sp == 1, places, channels, sp, sc
    if planes:
        lines, long, one, each = channels, places, sc, sp
    sums[: U(tall)] = 0
    for line in range(lines):
        begin = at + line * one
        many = _where(counts, begin, each, long, found)
        events += np.int64(many)
        for e in range(many):
            other = np.int64(found[e])
            n = np.int32(counts[U(begin + other * each)])
            k = line * places + other if planes else other * places + line
            _add_weights(weight, U(k * tall), n, sums, U(0), U(tall))
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
def _grows(scale, v):  # type: ignore[no-untyped-def]
    """Does sum · scale · V grow with the sum, with no underflow and finite? Then a pool may be one of sums."""
    good = v >= LEAST and v < LARGEST
    for o in range(U(len(scale))):
        good &= (scale[o] >= LEAST) & (scale[o] < LARGEST)
    return good


@compile
def _pool_sums(sums, wide, tall, pool):  # type: ignore[no-untyped-def]
    """The largest sums of each window without padding, in their own place; lines stay in reverse.

    A window goes no further than where it begins, and the next ones read behind that.
    """
    rows, columns, sy, sx = pool[ROWS], pool[ROWS + 1], pool[ROWS + 2], pool[ROWS + 3]
    dy, dx, high, out = pool[ROWS + 6], pool[ROWS + 7], pool[5], pool[6]
    for y in range(high):
        for z in range(out):
            o, first = U((y * out + z) * tall), y * sy * wide + wide - 1 - (out - 1 - z) * sx
            lowest = U((first - (columns - 1) * dx) * tall)
            for j in range(U(tall)):
                sums[o + j] = sums[lowest + j]
            for a in range(rows):
                for b in range(columns):
                    s = U((first + a * dy * wide - b * dx) * tall)
                    if s != lowest:
                        for j in range(U(tall)):
                            sums[o + j] = max(sums[o + j], sums[s + j])


@compile
def _larger_of_pairs(x, at, y, n):  # type: ignore[no-untyped-def]
    """y_i = max(x_2i, x_2i+1); NaN is larger than every number, and of equal ones it is the first."""
    for i in range(U(n)):
        a, b = x[U(at) + TWO * i], x[U(at) + TWO * i + U(1)]
        y[i] = b if (b > a) | (b != b) else a


@compile
def _pool_frame(x, at, sc, sp, row, out, to, oc, op, pairs):  # type: ignore[no-untyped-def]
    channels, height, width, high, wide = row[1], row[2], row[3], row[5], row[6]
    rows, columns, sy, sx = row[ROWS], row[ROWS + 1], row[ROWS + 2], row[ROWS + 3]
    ay, ax, dy, dx = row[ROWS + 4], row[ROWS + 5], row[ROWS + 6], row[ROWS + 7]
    square = rows == 2 and columns == 2 and sy == 2 and sx == 2 and ay == 0 and ax == 0 and dy == 1 and dx == 1
    if square and sp == 1 and op == 1 and height % 2 == 0 and width % 2 == 0:  # planes without a rest
        _larger_of_pairs(x, at, pairs, channels * height * wide)
        for line in range(U(channels * high)):
            first, second, o = line * U(2 * wide), line * U(2 * wide) + U(wide), U(to) + line * U(wide)
            for d in range(U(wide)):
                a, b = pairs[first + d], pairs[second + d]
                out[o + d] = b if (b > a) | (b != b) else a
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
                            out[U(o) + c] = new if (new > old) | (new != new) else old
                    else:
                        for c in range(channels):
                            new, old = x[U(i + c * sc)], out[U(o + c * oc)]
                            out[U(o + c * oc)] = new if (new > old) | (new != new) else old


@compile
def _turn(x, at, y, to, channels, places, sc, sp, oc, op):  # type: ignore[no-untyped-def]
    """Numbers of one frame in another order."""
    for c in range(channels):
        for p in range(places):
            y[U(to + c * oc + p * op)] = x[U(at + c * sc + p * sp)]
