"""Every kernel compiled ahead of time for sm_80 and sm_90, without a GPU; run by the test beside it."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastsnn_kernel_triton import lif, linear

POINTERS = {"keep": "*u8", "digits": "*i8", "weight": "*i8", "out": "*i64"}
POINTERS |= dict.fromkeys(("inputs", "weights", "starts"), "*i64")
NUMBERS = {"steps", "width", "rows", "columns", "stride_out", "stride_in", "place"}


def signature(kernel: Any, real: str, constants: dict[str, Any]) -> dict[str, str]:
    """Types of a kernel's arguments by their names: pointers to `real` where nothing else is said."""
    return {
        name: "constexpr" if name in constants else "i32" if name in NUMBERS else POINTERS.get(name, f"*{real}")
        for name in kernel.arg_names
    }


def cases() -> list[tuple[Any, str, dict[str, Any]]]:
    """Kernels with their types and constants."""
    flags = {"HAS_KEEP": True, "HEAVISIDE": False, "HARD": True, "SIZE": lif.BLOCK}
    scan = flags | {"EVERY": lif.CHECKPOINT, "MEMBRANE": False}
    tiles = {"TILE": linear.TILE, "DEPTH": linear.DEPTH, "COLUMNS": linear.COLUMNS, "ADD": True}
    return [
        (lif.forward_kernel, "fp32", scan),
        (lif.forward_kernel, "fp64", scan | {"MEMBRANE": True}),
        (lif.backward_kernel, "fp32", flags | {"ATTACHED": True}),
        (lif.backward_kernel, "fp64", flags | {"HARD": False, "ATTACHED": False}),
        (linear.digit_kernel, "i8", tiles),
        (linear.event_kernel, "i8", {"COLUMNS": linear.COLUMNS, "EVENTS": linear.EVENTS}),
    ]


if __name__ == "__main__":
    for capability in (80, 90):
        for kernel, real, constants in cases():
            source = ASTSource(kernel, signature(kernel, real, constants), constants)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
            ptx = made.asm["ptx"]
            assert f"sm_{capability}" in ptx
            assert made.asm["cubin"]
            if kernel in (lif.forward_kernel, lif.backward_kernel):
                assert "fma.rn" not in ptx, "a fused multiply-add rounds otherwise than the naive twin"
            else:
                assert kernel is not linear.digit_kernel or "mma" in ptx, "the INT8 product missed the tensor cores"
            print(capability, kernel.__name__, real, len(made.asm["cubin"]), "bytes")
