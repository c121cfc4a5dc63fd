"""Progress of long work on stderr: a line that is drawn again, with the time to go; plain lines where no terminal is.

    with Progress("converting", total=24, unit="layers") as progress:
        for layer in layers:
            ...
            progress.step(note=layer.name)

Nothing is shown until two seconds have passed, so short work stays silent. A background thread redraws the line, so
that one long step (a kernel being compiled) is seen to be alive. ``quiet=True`` or ``FASTSNN_QUIET=1`` silences it.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections import deque
from types import TracebackType

from fastsnn_console import contention
from fastsnn_core.cli import StderrHandler

DELAY = 2.0  # seconds before anything is shown
EVERY = 10.0  # seconds between plain lines
TICK = 0.5  # seconds between redraws
WINDOW = 60.0  # seconds whose speed the time to go is estimated from
WIDTH = 24  # characters of the bar

_active: list[Progress] = []  # nested work: only the innermost draws
_lock = threading.RLock()


def _forked() -> None:
    """A forked child (a DataLoader worker) has no thread of ours and draws nothing."""
    global _lock
    _lock = threading.RLock()
    _active.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Progress:
    """A context manager over `total` steps (None: unknown), `start` of which are done already."""

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "",
        *,
        start: int = 0,
        quiet: bool = False,
        delay: float = DELAY,
        lines: bool = True,
    ) -> None:
        self.title, self.total, self.unit, self.start, self.delay = title, total, unit, start, delay
        self.done, self.text = start, ""
        self.quiet = quiet or os.environ.get("FASTSNN_QUIET", "0") not in ("", "0")
        self.terminal = not self.quiet and bool(getattr(sys.stderr, "isatty", bool)())
        self.lines = lines and not self.terminal and not self.quiet  # plain lines every ten seconds
        self.shown = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self.began = self._said = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self.began, self.done)])
        self._drawn = 0.0
        with _lock:
            _active.append(self)
        if self.terminal or self.lines:
            self._thread = threading.Thread(target=self._watch, name="fastsnn-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with _lock:
            _active.remove(self)
            if self.terminal and self.shown:
                self._clear()
            if self.shown and kind is None and self.delay:  # without a delay the caller has lines of its own
                self._print(f"{self.title}: {self._count() or 'done'} in {clock(self.elapsed)}")

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def step(self, n: int = 1, note: str = "") -> None:
        """`n` further steps are done; `note` says what is being done, or how it stands."""
        self.update(self.done + n, note or self.text)

    def update(self, done: int, note: str = "") -> None:
        """`done` steps are done in all."""
        self.done, self.text = done, note
        if not self.quiet and "torch" in sys.modules:
            contention.tick()
        now = time.monotonic()
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > WINDOW:
            self._marks.popleft()
        self._show(now, least=0.0 if done == self.total else 0.1)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            write_line(text)

    def left(self) -> float | None:
        """Seconds to go by the speed of the last minute; None while it is not known."""
        (then, before), now = self._marks[0], time.monotonic()
        if self.total is None or self.done <= before or now <= then:
            return None
        return max(0.0, (self.total - self.done) * (now - then) / (self.done - before))

    def line(self) -> str:
        """The text of the line: bar, steps done, note, time to go."""
        left = self.left()
        time_left = f"{clock(left)} left" if left is not None else f"{clock(self.elapsed)} so far"
        bar = ""
        if self.terminal and self.total:
            full = round(WIDTH * min(1.0, self.done / self.total))
            try:
                "━─".encode(getattr(sys.stderr, "encoding", None) or "ascii")
                bar = "━" * full + "─" * (WIDTH - full)
            except UnicodeError:
                bar = "#" * full + "-" * (WIDTH - full)
        return "  ".join(filter(None, [self.title, bar, self._count(), self.text, time_left]))

    def _count(self) -> str:
        if self.total is None:
            return f"{self.done:,} {self.unit}".strip() if self.done else ""
        return f"{self.done:,}/{self.total:,} {self.unit}".strip()

    def _show(self, now: float, least: float) -> None:
        if now - self.began < self.delay or not (self.terminal or self.lines):
            return
        with _lock:
            if self._ended.is_set() or not _active or _active[-1] is not self:
                return
            if self.terminal and now - self._drawn >= least:
                self._draw(now)
            elif self.lines and (not self.shown or now - self._said >= EVERY):
                self._said, self.shown = now, True
                self._print(self.line())

    def _draw(self, now: float) -> None:
        self._drawn, self.shown = now, True
        width = shutil.get_terminal_size((80, 24)).columns - 1
        sys.stderr.write(f"\r\x1b[K{self.line()[:width]}")
        sys.stderr.flush()

    def _clear(self) -> None:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _watch(self) -> None:
        """Redraw while a step takes long."""
        while not self._ended.wait(TICK):
            try:
                self._show(time.monotonic(), least=TICK)
            except (OSError, ValueError):  # stderr was closed
                return


def write_line(text: str) -> None:
    """A line on stderr, above the bar that is being drawn, if any."""
    with _lock:
        bar = next((p for p in reversed(_active) if p.terminal and p.shown), None)
        if bar is not None:
            bar._clear()
        print(text, file=sys.stderr, flush=True)
        if bar is not None:
            bar._draw(time.monotonic())


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}"


StderrHandler.write = staticmethod(write_line)  # type: ignore[method-assign]  # log records stand above the bar
