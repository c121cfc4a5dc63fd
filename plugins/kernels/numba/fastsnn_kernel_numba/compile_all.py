"""``python -m fastsnn_kernel_numba.compile_all``: every kernel of an integer decoder into the cache on disk.

A line of output per operator that is done. `fastsnn_kernel_numba.cold_start` runs it in the background.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import torch

from fastsnn_core import ops
from fastsnn_kernel_numba import TABLE, cold_start, fused_decoder_compile, gemv_events
from fastsnn_modules.operands import kernel_later

LOADING, TAKING_OVER = 0.5, 6.0
"""Seconds in which this process leaves its core to who loads an operator's kernels, or makes the fused step and moves
into it: with three threads on two cores the one that answers would have to wait."""


def compile_operator(name: str) -> None:
    """An operator's kernels (or `cold_start.ONE_ROW`), for every type and layout of its sample inputs; those of the
    fused step without a run."""
    if name == "decode_step":
        fused_decoder_compile.make()
        return
    if name == cold_start.ONE_ROW:
        weight, one = torch.ones(64, 2, dtype=torch.int8).T, torch.ones(1, 1)
        gemv_events.product(torch.ones(1, 64), weight, torch.ones(2), one)
        return
    operator = ops.OPERATORS.get(name) or ops.registered()[name]
    kernel = kernel_later(f"fastsnn_kernel_numba.{TABLE[name]}")
    call: Any = kernel.unchecked  # type: ignore[attr-defined]
    with torch.no_grad():
        for sample in operator.samples():
            operator.run(call, *sample)


def main() -> None:
    """All of `cold_start.ORDER`; the marker at the end."""
    if hasattr(os, "nice"):
        os.nice(5)
    marker = cold_start.marker_path()
    with locked(marker):
        for name in (cold_start.ONE_ROW, *cold_start.ORDER):
            compile_operator(name)
            with contextlib.suppress(OSError):  # whoever asked may have ended
                print(name, flush=True)
            time.sleep(TAKING_OVER if name == "decode_step" else LOADING)
        if marker is not None:
            marker.touch()


@contextlib.contextmanager
def locked(marker: Any) -> Any:
    """One process compiles at a time; another one waits, and then finds everything there."""
    if marker is None or os.name == "nt":
        yield
        return
    import fcntl

    with marker.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
