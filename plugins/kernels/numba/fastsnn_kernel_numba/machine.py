"""What the processor is said to have: asked of it, or named by NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""

from __future__ import annotations

import platform
from typing import Any

import numba
from llvmlite import binding

config: Any = numba.config


def machine_has(feature: str) -> bool:
    """May code use this feature of x86, such as avx2?

    Where a processor is named, Numba compiles for that one, and only features listed with a plus count: code without
    them is right on each.
    """
    if config.CPU_NAME is None and config.CPU_FEATURES is None:
        return bool(binding.get_host_cpu_features().get(feature, False))
    return f"+{feature}" in (config.CPU_FEATURES or "").replace(" ", "").split(",")


AVX2 = machine_has("avx2")
VNNI = machine_has("avx512vnni") and machine_has("avx512vl")
"""Four products of bytes and their sum in one instruction, also of vectors of 256 bits."""
VNNI_512 = VNNI and machine_has("avx512bw")
"""And of vectors of 512 bits, with what shuffles their bytes."""
HALVES = machine_has("f16c") or platform.machine().lower() in ("aarch64", "arm64")
"""Are there instructions for 16-bit floats?"""
