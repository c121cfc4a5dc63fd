"""GPU kernels behind `fastsnn_core.ops`: LIF scans and exact integer products of spikes, in Triton."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from attrs import frozen

from fastsnn_core import Kernel, hookimpl
from fastsnn_modules.operands import kernel_later

__version__ = "0.1.0"

TABLE = {
    "lif_scan": "lif.forward",
    "lif_scan_backward": "lif.backward",
    "lif_membrane": "lif.membrane",
    "count_linear": "linear.count_linear",
    "event_linear": "linear.event_linear",
}


@frozen
class TritonKernels(Kernel):
    """Triton on CUDA devices: one program per block of channels over all of T; integer sums that never wrap.

    Compiled on first use (seconds) and kept in Triton's cache. Floats are computed as written (no fused
    multiply-add, IEEE division), so that results are the naive twin's on the same device. float32 and float64; INT8
    weights; what does not fit is left to the naive twin.
    """

    name = "triton"
    devices = ("cuda",)
    priority = 10

    def why_not(self) -> str | None:
        """Triton has to be importable, and there must be a device."""
        import torch

        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; pip install triton"
        return None if torch.cuda.is_available() else "there is no CUDA device"

    def operators(self) -> dict[str, Callable[..., Any]]:
        """Operator name to kernel."""
        return {operator: kernel_later(f"{__name__}.{path}") for operator, path in TABLE.items()}


@hookimpl
def fastsnn_kernels() -> list[type[Kernel]]:
    """This plugin's kernels."""
    return [TritonKernels]
