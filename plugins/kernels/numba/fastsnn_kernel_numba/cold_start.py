"""Kernels that were never compiled on this machine: a process of its own compiles them while others answer.

A compilation holds Python's lock for hundreds of milliseconds at a time, and compilations wait for each other. So where
the cache on disk is empty, a second process (`fastsnn_kernel_numba.compile_all`) fills it, in the order of `ORDER`, and
says which operator is done; a thread here then loads that operator's kernels and `ready` turns true. It goes on when
this process ends, so that the next one starts quickly. A file in the cache says that all of it was done
(`marker_path`). With ``FASTSNN_COMPILE=wait`` kernels compile where they are called, and whoever calls them waits.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

from fastsnn_integer.answer_meanwhile import in_background

log = logging.getLogger("fastsnn")
ORDER = (
    "exact_unary", "exact_row_sum", "exact_norm", "exact_attend", "count_linear", "count_project", "decode_step",
    "rows_residual", "rows_project", "rows_heads", "rows_hidden", "exact_scan", "count_project_q4",
    "count_project_ternary",
)  # fmt: skip
"""Operators that an integer decoder calls, in the order in which they are compiled: what a token needs, then the fused
step, which takes as long as all others, then what long prompts need."""

ONE_ROW = "one_row"
"""A part of `count_linear` and `count_project`: all that a token's products need, compiled before any operator."""

DONE = "compiled"
SAYS = "compiling kernels in the background, once; until they are there tokens come slower, with the same bits"


class ColdStart:
    """What this process knows of its kernels: all `warm`, or `there` as far as the second process has come."""

    def __init__(self) -> None:
        self.lock, self.there, self.warm = threading.Lock(), set[str](), False
        self.thread: threading.Thread | None = None

    def ready(self, operator: str) -> bool:
        """Is the operator's kernel compiled? The first question begins that where it is not."""
        if self.warm or operator in self.there:
            return True
        with self.lock:
            if self.thread is None and not self.warm:
                self.begin()
        return self.warm or operator in self.there

    def has(self, part: str) -> bool:
        """Has the second process compiled this part, or operator, and this one loaded it?"""
        return self.warm or part in self.there

    def waits_for(self, operator: str) -> bool:
        """Is the second process still to compile this operator?"""
        return self.thread is not None and not self.warm and operator not in self.there

    def begin(self) -> None:
        """Look at the cache; where it is not complete, start the second process."""
        waits = os.environ.get("FASTSNN_COMPILE") == "wait" or not sys.executable
        marker = None if waits else marker_path()
        if marker is None or marker.is_file():
            self.warm = True
            return
        if os.environ.get("FASTSNN_QUIET", "0") in ("", "0"):
            log.warning(SAYS)
        self.thread = threading.Thread(target=self.follow, name="fastsnn-cold-start", daemon=True)
        self.thread.start()
        prepare_to_load()

    def follow(self) -> None:
        """Start the second process, and load what it has compiled."""
        try:
            with subprocess.Popen(
                [sys.executable, "-P", "-m", "fastsnn_kernel_numba.compile_all"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                start_new_session=True,
            ) as process:  # fmt: skip
                assert process.stdout
                for line in process.stdout:
                    self.load(line.strip())
            if process.returncode:
                log.warning("compiling kernels in the background ended with %d; they compile here", process.returncode)
        except Exception as error:
            log.warning("compiling kernels in the background failed (%s); they compile here", error)
        finally:
            self.warm = True

    def load(self, operator: str) -> None:
        """Have an operator's kernels in this process, too."""
        from fastsnn_kernel_numba import compile_all

        if operator == ONE_ROW or operator in ORDER:
            with in_background():
                compile_all.compile_operator(operator)
            self.there.add(operator)


def prepare_to_load() -> None:
    """What loading a compiled kernel needs the first time, half a second: before the first token, not during one."""
    from numba.core.registry import cpu_target

    from fastsnn_core import ops
    from fastsnn_kernel_numba import compile_all as compile_all

    ops.registered()
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def marker_path() -> Path | None:
    """The file that says that all kernels of this code, for this processor, are in the cache; None without a cache."""
    folder = cache_folder()
    return None if folder is None else folder / f"{DONE}-{code_and_machine()}"


def cache_folder() -> Path | None:
    """Where Numba keeps this package's code."""
    from fastsnn_kernel_numba import deterministic

    kept: Any = getattr(deterministic._unary.parallel, "_cache", None)
    found = getattr(kept, "cache_path", None)
    return Path(found) if found else None


@cache
def code_and_machine() -> str:
    """A digest of the sources that compiled code holds, of Numba, and of the processor."""
    import llvmlite.binding as llvm

    import fastsnn_integer

    held = [importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")]
    held += [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    held += [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT")]
    for package in (Path(__file__).parent, Path(fastsnn_integer.__file__).parent):
        held += [path.read_text(encoding="utf-8") for path in sorted(package.glob("*.py"))]
    return hashlib.sha256("\0".join(held).encode()).hexdigest()[:16]


COLD = ColdStart()


def _without_followers() -> None:
    """A forked process has no thread that follows."""
    COLD.warm = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_without_followers)
