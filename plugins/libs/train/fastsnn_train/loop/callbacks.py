"""Tracker callbacks whose errors do not stop a run, and a signal handler for a clean stop."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from fastsnn_core import Run, Session, Tracker
from fastsnn_core.training_run import Row

log = logging.getLogger("fastsnn")


class TrackerCallbacks:
    """Context manager for a run's tracker sessions; one that raises is dropped from then on, with a warning."""

    def __init__(self, trackers: tuple[Tracker, ...], run: Run) -> None:
        self.trackers, self.run = trackers, run
        self.sessions: dict[str, Session] = {}

    def __enter__(self) -> TrackerCallbacks:
        for n, tracker in enumerate(self.trackers):
            self.sessions[f"{tracker.name} ({n + 1})"] = tracker.start(self.run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.each(lambda session: session.end(error))

    def log(self, row: Row) -> None:
        """Pass a log row to every session."""
        self.each(lambda session: session.log(dict(row)))

    def saved(self, path: Path) -> None:
        """Tell every session that a checkpoint was written to `path`."""
        self.each(lambda session: session.saved(path))

    def each(self, call: Callable[[Session], Any]) -> None:
        """Apply `call` to every session that has not failed; drop those that fail now."""
        for name, session in list(self.sessions.items()):
            try:
                call(session)
            except Exception as error:
                del self.sessions[name]
                log.warning("tracker %s failed and is left out of the rest of this run: %r", name, error)


class InterruptGuard:
    """A context manager that turns the first SIGINT or SIGTERM into `asked`; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = ""
        self.before: dict[int, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            self.before = {sort: signal.signal(sort, self.note) for sort in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sort, handler in self.before.items():
            signal.signal(sort, handler if handler is not None else signal.SIG_DFL)

    def note(self, sort: int, frame: FrameType | None) -> None:
        """The signal handler; raises `KeyboardInterrupt` at the second signal."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signal.Signals(sort).name
        log.warning("%s: finishing this step and saving; once more stops at once", self.asked)
