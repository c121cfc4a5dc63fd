"""Memory that a training step gives back stays with the process: the next step finds it without page faults.

glibc asks the system for every large tensor anew and gives it back when it dies. Each page then costs a fault and is
filled with zeros, which takes longer than most operations on it: a step of a convolutional network over 25 steps of
time spent more than half of its time so (benchmarks/NOTES.md). `freed_memory_kept` has glibc keep what is freed, and
gives it back at its end. Elsewhere than on Linux with glibc it does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # names of mallopt(3)
USUAL = {TRIM_THRESHOLD: 128 << 10, TOP_PAD: 128 << 10, MMAP_MAX: 65536}
KEPT = {TRIM_THRESHOLD: (1 << 31) - 1, TOP_PAD: 64 << 20, MMAP_MAX: 0}
_lock = threading.Lock()
_inside = 0


@cache
def glibc() -> Any:
    """The C library, where it is glibc and lets itself be set; else None."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        _ = library.mallopt, library.malloc_trim
        return library
    return None


def _set_all(options: dict[int, int]) -> None:
    library = glibc()
    for option, value in options.items():
        library.mallopt(option, value)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside the block large tensors take memory that others left; at the end of the last block it is given back."""
    global _inside
    if glibc() is None:
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            _set_all(KEPT)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set_all(USUAL)
                glibc().malloc_trim(0)
