"""The arrays of one row of a fused step, and how a kernel finds them by their addresses."""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, register_model
from numba.np.arrayobj import make_array, populate_array

from fastsnn_kernel_numba.layout import ARRAYS, INT, PLACES

OFFSETS = {name: INT.itemsize * i for i, name in enumerate(PLACES.names or ())}


class Workspace(NamedTuple):
    """All arrays of a fused step: tables, packed constants, scratch buffers. See `layout.ARRAYS`."""

    sync: Any
    layers: Any
    stages: Any
    matrices: Any
    tasks: Any
    sites: Any
    mixers: Any
    constants: Any
    codes: Any
    table: Any
    row: Any
    threshold: Any
    x: Any
    y: Any
    z: Any
    hidden: Any
    mixed: Any
    counts: Any
    index: Any
    count: Any
    acc: Any
    sums: Any
    sums_64: Any
    dots: Any
    acc_64: Any
    lists: Any
    heads: Any
    folds: Any
    logits: Any
    gates: Any
    narrow: Any
    ways: Any
    count_bytes: Any


class WorkspaceAt(types.Type):
    """What kernels have of a `Workspace`: the address of its record `PLACES`. Its attributes are arrays.

    A tuple of 33 arrays takes 231 numbers, which were written and read at every call. Places do not change while a
    kernel runs, so the compiler may read one once.
    """

    def __init__(self) -> None:
        super().__init__("WorkspaceAt")


register_model(WorkspaceAt)(models.OpaqueModel)  # an address


@infer_getattr
class _Arrays(AttributeTemplate):
    """Types of the attributes."""

    key = WorkspaceAt

    def generic_resolve(self, value: Any, attr: str) -> Any:  # type: ignore[override]
        return types.Array(from_dtype(ARRAYS[attr]), 1, "C") if attr in ARRAYS else None


@lower_getattr_generic(WorkspaceAt)
def _array_at(context: Any, builder: Any, kind: Any, work: Any, name: str) -> Any:
    """The array at the place of a name, without an owner, as `fastsnn_kernel_numba.array_views.view` makes one."""
    i64 = ir.IntType(64)

    def place(part: str) -> Any:
        offset = OFFSETS[f"{name}_{part}"]
        at = builder.bitcast(cgutils.pointer_add(builder, work, offset), i64.as_pointer())
        number = builder.load(at, align=8)
        number.set_metadata("invariant.load", builder.module.add_metadata([]))
        return number

    of = types.Array(from_dtype(ARRAYS[name]), 1, "C")
    array, size = make_array(of)(context, builder), place("size")
    data = builder.inttoptr(place("at"), array.data.type)
    step = context.get_constant(types.intp, ARRAYS[name].itemsize)
    populate_array(array, data=data, shape=[size], strides=[step], itemsize=step, meminfo=None)
    return array._getvalue()


@intrinsic
def _work(typing: Any, places: Any) -> Any:
    """The arrays at the places of a record `PLACES`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return WorkspaceAt()(places), generate
