"""How the compiled kernels are started: disk cache, threads, forked children, and memory without page faults.

*Cache.* Compiled code is kept by Numba beside this package (``__pycache__``), or, where that is read-only, in the
user's cache folder; ``NUMBA_CACHE_DIR`` moves it. Where nothing is writable a kernel is compiled once per process, and
a warning says so.

*Threads.* As many as torch uses (``torch.set_num_threads``), by preference on OpenMP: Numba's and torch's calls then
share one thread pool. Numba's own pool (``workqueue``) cannot be entered twice, so calls wait for each other there. A
forked child may not enter a pool its parent started; it runs the same functions compiled without threads.

*Pages.* Large outputs are advised to use huge pages: touching 32 MiB for the first time costs 8192 page faults of 4 KiB
otherwise, several times what the kernels take.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numba
import torch
from torch import Tensor

log = logging.getLogger("fastsnn")
HUGE = 4 << 20  # bytes from which an output is advised to use huge pages
MADV_HUGEPAGE = 14
_forked = False
_one_at_a_time = threading.Lock()

if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def compile(function: Callable[..., Any], **options: Any) -> Any:
    """``numba.njit`` with the disk cache where there is a writable folder, and without it (saying so) where not."""
    try:
        return numba.njit(cache=True, error_model="numpy", **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _warn_no_cache(str(error))
        return numba.njit(error_model="numpy", **options)(function)


@cache
def _warn_no_cache(reason: str) -> None:
    log.warning("kernels are compiled anew in this process; set NUMBA_CACHE_DIR to a writable folder (%s)", reason)


class Threaded:
    """A kernel whose last argument is the number of workers that its outermost `prange` shares the tasks out to."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.parallel = compile(function, parallel=True, nogil=True)

    @cached_property
    def serial(self) -> Any:
        """The same function without threads."""
        return compile(self.function, nogil=True)

    def __call__(self, *args: Any) -> Any:
        """Run on `workers` threads."""
        if _forked:
            return self.serial(*args, 1)
        wanted, found = workers(), numba.get_num_threads()
        guard = _one_at_a_time if _layer() not in ("omp", "tbb") else contextlib.nullcontext()
        with guard:
            if wanted == found:
                return self.parallel(*args, wanted)
            numba.set_num_threads(wanted)
            try:
                return self.parallel(*args, wanted)
            finally:
                numba.set_num_threads(found)


def workers() -> int:
    """Threads a kernel runs on: torch's number, at most Numba's."""
    return 1 if _forked else max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def _layer() -> str:
    try:
        return numba.threading_layer()
    except ValueError:  # not started yet: the first call of a process goes alone
        return ""


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty`` on huge pages where the system has them and the tensor is large."""
    out = torch.empty(shape, dtype=dtype)
    if out.nbytes >= HUGE and sys.platform == "linux":
        first = -(-out.data_ptr() // 4096) * 4096
        last = (out.data_ptr() + out.nbytes) // 4096 * 4096
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_HUGEPAGE)  # advice: may be refused
    return out


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def flat(t: Tensor) -> Any:
    """A contiguous tensor as a one-dimensional NumPy array on the same memory."""
    return t.detach().reshape(-1).numpy()
