"""Compiled CPU kernels behind `fastsnn_core.ops`: LIF scans and integer products of spikes, in Numba."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import frozen

from fastsnn_core import Kernel, hookimpl
from fastsnn_kernel_numba import moved as moved
from fastsnn_kernel_numba.cold_start import COLD, ORDER
from fastsnn_modules.operands import imported_later, kernel_later

__version__ = "0.1.0"

TABLE = {
    "lif_scan": "lif_scan.forward",
    "lif_scan_backward": "lif_scan.backward",
    "lif_membrane": "lif_scan.membrane",
    "cell_scan": "cell_scan.forward_cells",
    "cell_scan_backward": "cell_scan.backward_cells",
    "max_pool": "max_pool.pool_planes",
    "max_pool_backward": "max_pool.spread_gradient",
    "count_linear": "integer_linear.count_linear",
    "count_project": "integer_linear.count_project",
    "count_project_q4": "four_bit_linear.product_of_four_bits",
    "count_project_ternary": "ternary_linear.product_of_ternary",
    "count_conv": "conv_events.count_conv",
    "frame_run": "frames.run_frames",
    "event_linear": "integer_linear.event_linear",
    "input_major": "integer_linear.input_major",
    "exact_unary": "deterministic.unary",
    "exact_norm": "deterministic.norm",
    "exact_row_sum": "deterministic.row_sum",
    "exact_attend": "attention.attend",
    "exact_scan": "deterministic.scan",
    "rows_residual": "row_epilogues.residual",
    "rows_hidden": "row_epilogues.hidden",
    "rows_heads": "row_epilogues.heads",
    "rows_project": "row_epilogues.project",
    "decode_step": "fused_decoder_runtime.NumbaStepper",
}


@frozen
class NumbaKernels(Kernel):
    """Numba on CPU: threads over streams and rows, vectors over channels; bit for bit what the naive twins give.

    Compiled on first use (seconds) and kept on disk: beside the package, else in the user's cache folder, or where
    ``NUMBA_CACHE_DIR`` says; generation and the server do not wait for that (`fastsnn_kernel_numba.cold_start`). Runs
    on as many threads as torch does. float32 and float64; int8 weights.
    """

    name = "numba"
    devices = ("cpu",)
    priority = 10

    def why_not(self) -> str | None:
        """Numba has to be importable."""
        return None if importlib.util.find_spec("numba") else "numba is not installed; pip install numba"

    def operators(self) -> dict[str, Callable[..., Any]]:
        """Operator name to kernel."""
        table = {operator: kernel_later(f"{__name__}.{path}") for operator, path in TABLE.items()}
        for operator in ORDER:
            kernel: Any = table[operator]
            kernel.ready = kernel.unchecked.ready = partial(COLD.ready, operator)
        part = imported_later(f"{__name__}.integer_linear.one_row")
        for operator in ("count_linear", "count_project"):
            whole: Any = table[operator]
            whole.meanwhile = whole.unchecked.meanwhile = part
        return table


@hookimpl
def fastsnn_kernels() -> list[type[Kernel]]:
    """This plugin's kernels."""
    return [NumbaKernels]
