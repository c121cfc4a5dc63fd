"""Decoders of camera formats, a piece of a file at a time: each keeps what the next piece needs to know.

N-MNIST (ATIS): 5 bytes an event: x, y, polarity and 23 bits of time; y = 240 says that the clock ran over by 2¹³.
EVT2: words of 32 bits: a type, 6 bits of time, x and y; other words carry the 28 bits above. EVT3: words of 16 bits
that each change one of y, time and base x; vectors of 12 or 8 pixels at once. Source: Prophesee's own description.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Nmnist:
    """``.bin`` of N-MNIST and N-Caltech101."""

    word = 5
    unit = "event"

    def __init__(self) -> None:
        self.over = 0

    def decode(self, raw: np.ndarray) -> Columns:
        """Bytes of whole events."""
        rows = raw.reshape(-1, 5).astype(np.int64)
        ran_over = rows[:, 1] == 240
        over = self.over + np.cumsum(ran_over)
        self.over = int(over[-1]) if len(over) else self.over
        t = ((rows[:, 2] & 127) << 16 | rows[:, 3] << 8 | rows[:, 4]) + (over << 13)
        real = ~ran_over
        return t[real], rows[real, 0], rows[real, 1], rows[real, 2] >> 7


class Evt2:
    """Prophesee EVT 2.0."""

    word = 4
    unit = "word"

    def __init__(self) -> None:
        self.high = 0

    def decode(self, raw: np.ndarray) -> Columns:
        """Bytes of whole words."""
        words = raw.view("<u4").astype(np.int64)
        kind = words >> 28
        high = filled(np.where(kind == 8, (words & 0xFFFFFFF) << 6, -1), self.high)
        self.high = int(high[-1]) if len(high) else self.high
        seen = kind <= 1
        w = words[seen]
        return high[seen] | (w >> 22 & 0x3F), w >> 11 & 0x7FF, w & 0x7FF, kind[seen]


class Evt3:
    """Prophesee EVT 3.0."""

    word = 2
    unit = "word"

    def __init__(self) -> None:
        self.y = self.high = self.low = self.base = self.p = self.loops = 0

    def decode(self, raw: np.ndarray) -> Columns:
        """Bytes of whole words."""
        words = raw.view("<u2").astype(np.int64)
        kind, value = words >> 12, words & 0xFFF
        y = filled(np.where(kind == 0, value & 0x7FF, -1), self.y)
        new_high = kind == 8
        high = filled(np.where(new_high, value, -1), self.high)
        loops = self.loops + np.cumsum(np.diff(high, prepend=self.high) < -2048)  # 24 bits: over after 16.8 s
        low = filled(np.where(new_high, 0, np.where(kind == 6, value, -1)), self.low)
        t = (loops << 24) + (high << 12 | low)
        moved = np.where(kind == 4, 12, np.where(kind == 5, 8, 0))
        steps = np.cumsum(moved)
        start = filled(np.where(kind == 3, value & 0x7FF, -1), -1)
        mark = filled(np.where(kind == 3, steps, -1), 0)
        base = np.where(start >= 0, start, self.base) + steps - np.where(start >= 0, mark, 0) - moved
        p = filled(np.where(kind == 3, value >> 11, -1), self.p)
        single = np.flatnonzero(kind == 2)
        vector = np.flatnonzero((kind == 4) | (kind == 5))
        bits = value[vector][:, None] >> np.arange(12) & 1
        bits[kind[vector] == 5, 8:] = 0
        rows, places = np.nonzero(bits)
        at = np.concatenate([single, vector[rows]])
        x = np.concatenate([value[single] & 0x7FF, base[vector[rows]] + places])
        polarity = np.concatenate([value[single] >> 11, p[vector[rows]]])
        order = np.argsort(at, kind="stable")
        found = t[at][order], x[order], y[at][order], polarity[order]
        if len(words):
            self.y, self.high, self.low, self.p = int(y[-1]), int(high[-1]), int(low[-1]), int(p[-1])
            self.base, self.loops = int(base[-1] + moved[-1]), int(loops[-1])
        return found


def filled(values: np.ndarray, before: int) -> np.ndarray:
    """Each -1 replaced by the last value that was not, or by `before`."""
    places = np.maximum.accumulate(np.where(values >= 0, np.arange(1, len(values) + 1), 0)) if len(values) else values
    return np.concatenate([[before], values])[places] if len(values) else values


DECODERS: dict[str, Any] = {"nmnist": Nmnist, "evt2": Evt2, "evt3": Evt3}
