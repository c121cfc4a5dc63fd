"""Says once, after two seconds of it, that kernels are being compiled: a first run is otherwise silent for a minute."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from numba.core import event

log = logging.getLogger("fastsnn")
AFTER = 2.0  # seconds of compilation in all
SAYS = "compiling kernels, once: this takes up to a minute or two, and they are kept on disk for the next time"


class CompileNotice(event.Listener):
    """Adds up the seconds that this process has compiled for; compilations inside another are part of it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: dict[int, tuple[int, float]] = {}  # by thread: how deep, since when
        self.spent, self.said = 0.0, False
        self.timer: threading.Timer | None = None

    def on_start(self, event: Any) -> None:
        """A compilation begins."""
        with self.lock:
            deep, since = self.open.get(threading.get_ident(), (0, time.monotonic()))
            self.open[threading.get_ident()] = deep + 1, since
            if not self.said and self.timer is None and threading.current_thread() is threading.main_thread():
                self.timer = threading.Timer(max(0.0, AFTER - self.spent), self.say)
                self.timer.daemon = True
                self.timer.start()

    def on_end(self, event: Any) -> None:
        """A compilation ends."""
        with self.lock:
            deep, since = self.open.pop(threading.get_ident(), (1, time.monotonic()))
            if deep > 1:
                self.open[threading.get_ident()] = deep - 1, since
                return
            self.spent += time.monotonic() - since
            if self.timer is not None and threading.current_thread() is threading.main_thread():
                self.timer.cancel()
                self.timer = None

    def say(self) -> None:
        """Once, unless everything is to be quiet."""
        with self.lock:
            said, self.said, self.timer = self.said, True, None
        if not said and os.environ.get("FASTSNN_QUIET", "0") in ("", "0"):
            log.warning(SAYS)


def listen_for_compilation() -> CompileNotice:
    """Listen to Numba from now on; code that comes from the disk cache is no compilation."""
    notice = CompileNotice()
    event.register("numba:compile", notice)
    return notice
