"""`Events`: what an event camera saw, checked: every fault names the event."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from fastsnn_core.errors import FastSNNError


class EventError(FastSNNError):
    """A recording that cannot be used: names the file, the event, and what is possible."""


@attrs.frozen(eq=False)
class Events:
    """Times t (microseconds), columns x, rows y, polarities p (1 brighter, 0 darker), arrays ``[N]``; size (H, W)."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    size: tuple[int, int] = (0, 0)

    def __attrs_post_init__(self) -> None:
        if len({len(self.t), len(self.x), len(self.y), len(self.p)}) > 1:
            sizes = ", ".join(f"{name}: {len(getattr(self, name))}" for name in "txyp")
            raise EventError(f"the columns of events have different lengths ({sizes})")

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, which: slice | np.ndarray) -> Events:
        return Events(self.t[which], self.x[which], self.y[which], self.p[which], self.size)

    def checked(self, where: str = "events", first: int = 0, after: int | None = None) -> Events:
        """These events; an error where time runs backwards (`after`: the last time before them), or a place is outside.

        `first` is the number of the first of them in its recording.
        """
        before = self.t[:1] if after is None else np.array([after])
        late = np.flatnonzero(np.diff(self.t, prepend=before) < 0)
        if len(late):
            n = int(late[0])
            past = int(self.t[n - 1]) if n else int(before[0])
            raise EventError(
                f"{where}: the time of event {first + n} runs backwards: {int(self.t[n])} µs after {past} µs; "
                "sort=True sorts them"
            )
        if self.size != (0, 0) and len(self):
            h, w = self.size
            outside = np.flatnonzero((self.x < 0) | (self.x >= w) | (self.y < 0) | (self.y >= h))
            if len(outside):
                n = int(outside[0])
                place = f"({int(self.x[n])}, {int(self.y[n])})"
                raise EventError(f"{where}: event {first + n} is at {place}, outside of {w} × {h} pixels")
        return self

    def sorted(self) -> Events:
        """By time."""
        return self[np.argsort(self.t, kind="stable")]

    def cropped(self, left: int, top: int, width: int, height: int) -> Events:
        """Only those inside a rectangle, whose corner becomes the origin."""
        inside = (self.x >= left) & (self.x < left + width) & (self.y >= top) & (self.y < top + height)
        kept = self[inside]
        return Events(kept.t, kept.x - left, kept.y - top, kept.p, (height, width))

    @staticmethod
    def joined(parts: Sequence[Events], size: tuple[int, int] = (0, 0)) -> Events:
        """One after the other."""
        if not parts:
            none = np.zeros(0, np.int64)
            return Events(none, none, none, none, size)
        t, x, y, p = (np.concatenate([getattr(part, name) for part in parts]) for name in "txyp")
        return Events(t, x, y, p, size)
