"""Arrays at addresses: `view`, without an owner.

Every array that Numba hands to a function is counted up and down, by atomic additions to one place in memory; with
workers on two cores that place travels between them, and a call with twenty arrays took 4 µs. Views of an address have
no owner to count. Whoever starts a kernel keeps the memory alive.
"""

from __future__ import annotations

from typing import Any

from numba import carray, types
from numba.extending import intrinsic

from fastsnn_kernel_numba.numba_runtime import compile


@intrinsic
def _pointer(typing: Any, address: Any, dtype: Any) -> Any:
    """The address as a pointer to `dtype`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(types.int64, dtype), generate


@compile
def view(address, size, dtype):  # type: ignore[no-untyped-def]
    """`size` elements of a NumPy `dtype` (a number or a record of `fastsnn_kernel_numba.layout`) at an address."""
    return carray(_pointer(address, dtype), (size,))
