"""Old import paths of this distribution, kept for one release."""

from __future__ import annotations

from fastsnn_core.moved import add

add(
    "fastsnn_kernel_numba",
    {
        "decode": "fused_decoder_compile",
        "event": "gemm_events",
        "exact": "deterministic",
        "launch": "numba_runtime",
        "lif": "lif_scan",
        "linear": "integer_linear",
        "memory": "buffer_pool",
        "onerow": "gemv_events",
        "rows": "row_epilogues",
        "step": "fused_decoder_stages",
        "stepper": "fused_decoder_runtime",
        "sync": "spin_barrier",
        "views": "array_views",
    },
)
