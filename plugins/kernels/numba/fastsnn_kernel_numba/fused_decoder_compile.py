"""Compiling the fused step: when asked for, or in the background, and its start in one parallel region.

The walk is compiled by itself and started by its address: on torch's own OpenMP threads where torch has GNU's (as
`fastsnn_kernel_numba.numba_runtime.Team`), else on Numba's, whose region calls it: a caller that holds its code would
have it all optimised again.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from fastsnn_core.moved import renamed
from fastsnn_kernel_numba import numba_runtime
from fastsnn_kernel_numba.cold_start import COLD
from fastsnn_kernel_numba.fused_decoder_kernel import _walk
from fastsnn_kernel_numba.numba_runtime import Threaded, code_digest, torch_pool

log = logging.getLogger("fastsnn")


@cache
def walk_address() -> int:
    """The address of `_walk`, compiled when first asked for."""
    _walk.__qualname__ = f"_walk_{code_digest(_walk)}"  # as `numba_runtime.compile` does
    kind, cfunc = types.void(types.int64), partial(numba.cfunc, error_model="numpy")
    try:
        address = cfunc(kind, cache=True)(_walk).address
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        address = cfunc(kind)(_walk).address
    return int(address or 0)


RETRY = 60.0  # seconds after a compilation that failed until the next one begins
_making: list[threading.Thread | None] = []  # None: asked for once; then the thread
_failed: list[tuple[float, str]] = []  # when the latest compilation failed, and why


def step_is_compiled() -> bool:
    """Is the step compiled, now or by an earlier process? Where not, that begins in the background when asked again.

    Not at once: compilations wait for each other, and the model's own kernels for one token should come first. One that
    has failed is tried again after `RETRY` seconds; until then `compile_error` says why.
    """
    if step_is_loaded():
        return True
    if COLD.waits_for("decode_step"):
        return False  # another process compiles it, and then a thread loads it
    kept = _step.parallel._cache.cache_path
    if kept and all(any(Path(kept).glob(f"*.{name}*.nbi")) for name in names_on_disk()):
        return True
    if not _making:
        _making.append(None)
        return False
    thread = _making[-1]
    if thread is None or (not thread.is_alive() and (not _failed or time.monotonic() - _failed[-1][0] > RETRY)):
        log.warning("the fused decoding step is compiled in the background, once; until then tokens come slower")
        thread = threading.Thread(target=_make_or_say, name="fastsnn-compile")
        _making[:] = [None, thread]
        thread.start()
    return False


def step_is_loaded() -> bool:
    """Has this process the step's code?"""
    return bool(walk_address.cache_info().currsize and (torch_pool() is not None or _step.parallel.signatures))


def names_on_disk() -> tuple[str, ...]:
    """Names under which Numba keeps what is compiled on disk."""
    walk = f"_walk_{code_digest(_walk)}"
    return (walk, _step.parallel.py_func.__qualname__) if torch_pool() is None else (walk,)


def compile_error() -> str:
    """Why the latest compilation in the background failed; "" where none did."""
    return _failed[-1][1] if _failed else ""


def make() -> None:
    """Compile the step, or load it."""
    walk_address()
    if torch_pool() is None:
        _step.parallel.compile((types.int64,) * 3)


def _make_or_say() -> None:
    """`make`, with what goes wrong kept for `compile_error`."""
    try:
        make()
    except Exception as error:
        _failed[:] = [(time.monotonic(), f"{type(error).__name__}: {error}")]
        log.warning("compiling the fused decoding step failed (%s); tokens go through the model's own layers", error)
    else:
        _failed.clear()


@intrinsic
def _call_address(typing: Any, address: Any, argument: Any) -> Any:
    """The function of a whole number at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64 = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [i64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@Threaded
def _step(address, call, nw):  # type: ignore[no-untyped-def]
    for _worker in prange(nw):
        _call_address(address, call)


@cache
def _function(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


def start_step(address: int, call: int, wanted: int) -> None:
    """The walk at an address on so many workers; `call` is the address of a record `CALL`."""
    if wanted == 1 or numba_runtime._forked:
        _function(address)(call)
    elif pool := torch_pool():
        pool(address, call, wanted, 0)
    else:
        _step.on(wanted, address, call)


__getattr__ = renamed(__name__, {"ready": "step_is_compiled", "walk": "walk_address"})
