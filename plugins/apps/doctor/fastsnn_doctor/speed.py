"""Two seconds of measuring: what memory and arithmetic of this machine give at the moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

SECONDS = 1.0  # for each of the two
BYTES = 2**28
SIZE = 512


def machine_speeds() -> dict[str, str]:
    """Reading 256 MiB (what decoding is bound by) and a float32 product of 512 x 512 matrices (prompts, training)."""
    numbers = torch.ones(BYTES // 4)
    a, b = torch.ones(SIZE, SIZE), torch.ones(SIZE, SIZE)
    read = seconds(lambda: numbers.sum())
    product = seconds(lambda: a @ b)
    return {
        "reading memory": f"{BYTES / read / 1e9:.1f} GB/s",
        "float32 product": f"{2 * SIZE**3 / product / 1e9:.0f} GFLOP/s",
        "threads": str(torch.get_num_threads()),
    }


def seconds(run: Callable[[], object]) -> float:
    """Median seconds of one call, over `SECONDS`."""
    run()
    found: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or not found:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found)
