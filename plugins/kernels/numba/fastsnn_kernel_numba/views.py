"""Arrays at addresses: views without an owner.

Every array that Numba hands to a function is counted up and down, by atomic additions to one place in memory; with
workers on two cores that place travels between them, and a call with twenty arrays took 4 µs. Views of an address have
no owner to count. Whoever starts a kernel keeps the memory alive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from fastsnn_kernel_numba.launch import compile


def _pointer(kind: Any, name: str) -> Callable[..., Any]:
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    pointer.__name__ = pointer.__qualname__ = name
    return intrinsic(pointer)


_to_i8, _to_i16 = _pointer(types.int8, "_to_i8"), _pointer(types.int16, "_to_i16")
_to_i32, _to_i64 = _pointer(types.int32, "_to_i32"), _pointer(types.int64, "_to_i64")
_to_f32 = _pointer(types.float32, "_to_f32")


@compile
def i8(address, size):  # type: ignore[no-untyped-def]
    """8-bit integers."""
    return carray(_to_i8(address), (size,))


@compile
def i16(address, size):  # type: ignore[no-untyped-def]
    """16-bit integers."""
    return carray(_to_i16(address), (size,))


@compile
def i32(address, size):  # type: ignore[no-untyped-def]
    """32-bit integers."""
    return carray(_to_i32(address), (size,))


@compile
def i64(address, size):  # type: ignore[no-untyped-def]
    """64-bit integers."""
    return carray(_to_i64(address), (size,))


@compile
def rows(address, size, columns):  # type: ignore[no-untyped-def]
    """A table of 64-bit integers, `size` numbers in all."""
    return carray(_to_i64(address), (size // columns, columns))


@compile
def f32(address, size):  # type: ignore[no-untyped-def]
    """Numbers in float32."""
    return carray(_to_f32(address), (size,))


@compile
def f32_rows(address, size, columns):  # type: ignore[no-untyped-def]
    """A table of float32 numbers, `size` in all."""
    return carray(_to_f32(address), (size // columns, columns))


def places(arrays: Any) -> Any:
    """Address and size of each array, ``[n, 2]``."""
    return np.array([(array.ctypes.data, array.size) for array in arrays], np.int64)
