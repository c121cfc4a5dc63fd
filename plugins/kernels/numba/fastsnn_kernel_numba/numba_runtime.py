"""How the compiled kernels are started: disk cache, threads, forked children.

*Cache.* Compiled code is kept by Numba beside this package (``__pycache__``), or, where that is read-only, in the
user's cache folder; ``NUMBA_CACHE_DIR`` moves it. Where nothing is writable a kernel is compiled once per process, and
a warning says so.

*Threads.* As many as torch uses (``torch.set_num_threads``), by preference on OpenMP: Numba's and torch's calls then
share one thread pool (and one setting: Numba's start would reset torch's number, so it is put back). Numba's own pool
(``workqueue``) cannot be entered twice, so calls wait for each other there. A forked child may not enter a pool its
parent started; it runs the same functions compiled without threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from fastsnn_kernel_numba import compile_notice
from fastsnn_modules.operands import OperandTypeError

log = logging.getLogger("fastsnn")
_notice = compile_notice.listen_for_compilation()
_forked = False
_kept = threading.local()
_one_at_a_time = threading.Lock()

config: Any = numba.config  # whose settings are not in its type stub
if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
_threads = torch.get_num_threads()
numba.set_num_threads(numba.get_num_threads())  # starts Numba's threading layer
torch.set_num_threads(_threads)
ALL: int = config.NUMBA_NUM_THREADS
ALONE = numba.threading_layer() == "workqueue"  # a pool that cannot be entered twice


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def compile(function: Callable[..., Any], maker: Any = numba.njit, **options: Any) -> Any:
    """``numba.njit``, or another maker, with the disk cache; without it, and saying so, where no folder is writable.

    Numba looks only at the file of a function to see whether its code is stale. Compiled code holds more: functions of
    other files, and constants of other distributions. So the name under which code is kept carries a digest of all.
    """
    function.__qualname__ = f"{function.__qualname__}_{code_digest(function)}"
    try:
        return maker(cache=True, error_model="numpy", **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _warn_no_cache(str(error))
        return maker(error_model="numpy", **options)(function)


_digests: dict[Any, str] = {}


def code_digest(function: Callable[..., Any]) -> str:
    """Of all that the compiled code of a function holds: bytecode, the functions it calls, the constants it reads."""
    function = getattr(function, "py_func", function)
    if function not in _digests:
        _digests[function] = ""  # a function that calls itself
        held = [*_compiled_code(function.__code__, function.__globals__), *_cells(function)]
        if ".fused_decoder" in (function.__module__ or ""):
            held.append(argument_types())
        _digests[function] = hashlib.sha256("\n".join(held).encode()).hexdigest()[:12]
    return _digests[function]


@cache
def argument_types() -> str:
    """The named tuples and types that kernels take, by module. Numba's files on disk name them so: one moved is not
    read back. With a type goes a digest of its file, which says what its attributes are."""
    found = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for name, kind in re.findall(r"^class (\w+)\((NamedTuple|types\.Type)\)", text, re.MULTILINE):
            digest = hashlib.sha256(text.encode()).hexdigest()[:12] if kind == "types.Type" else ""
            found.append(f"{path.stem}.{name}{digest}")
    return " ".join(found)


def _compiled_code(code: Any, space: dict[str, Any]) -> Iterator[str]:
    yield code.co_code.hex()
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _compiled_code(value, space)
        elif not isinstance(value, str):  # docstrings and messages
            yield repr(value)
    for name in code.co_names:
        yield f"{name}={_held(space[name])}" if name in space else name


def _cells(function: Any) -> Iterator[str]:
    for cell in getattr(function, "__closure__", None) or ():
        yield _held(cell.cell_contents)


def _held(value: Any) -> str:
    """What compiled code keeps of a global: a function by its digest, a number, name or type by its value."""
    found = getattr(value, "py_func", getattr(value, "_defn", value))  # a compiled function, an intrinsic
    if isinstance(found, FunctionType):
        return code_digest(found)
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tobytes().hex()}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}{getattr(value, '_fields', '')}"
    plain = isinstance(value, int | float | str | bytes | tuple | frozenset | np.generic | np.dtype | types.Type)
    return repr(value) if plain else type(value).__name__


@cache
def _warn_no_cache(reason: str) -> None:
    log.warning("kernels are compiled anew in this process; set NUMBA_CACHE_DIR to a writable folder (%s)", reason)


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Prefetch the cache line of ``array[index]``; no access, so any index will do."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.gep(data, [args[1]])
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer.type,), kind)
        builder.call(function, [pointer, i32(0), i32(2), i32(1)])  # read, into L2, data
        return context.get_dummy_value()

    return types.void(array, index), generate


class Threaded:
    """A kernel whose last argument is the number of workers that its outermost `prange` shares the tasks out to."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.parallel = compile(function, parallel=True, nogil=True)

    @cached_property
    def serial(self) -> Any:
        """The same function without threads, under a name of its own: Numba's cache tells functions apart by name."""
        twin = FunctionType(self.function.__code__, self.function.__globals__, f"{self.function.__name__}_serial")
        twin.__qualname__ = twin.__name__
        return compile(twin, nogil=True)

    def __call__(self, *args: Any) -> Any:
        """Run on `workers` threads: for kernels whose memory is the same for any number of workers."""
        return self.on(workers(), *args)

    def on(self, wanted: int, *args: Any) -> Any:
        """With so many workers: the number that memory of theirs was made for, which may have changed since then. There
        are as many threads, at most Numba's."""
        if _forked:
            return self.serial(*args, 1)
        if wanted == ALL and not ALONE:  # nothing to set, and asking takes a microsecond
            return self.parallel(*args, wanted)
        found = numba.get_num_threads()
        with _one_at_a_time if ALONE else contextlib.nullcontext():
            if wanted == found:
                return self.parallel(*args, wanted)
            numba.set_num_threads(min(wanted, ALL))
            try:
                return self.parallel(*args, wanted)
            finally:
                numba.set_num_threads(found)


class Team:
    """A kernel that every worker calls with the address of its arguments; workers tell themselves apart by counting.

    It runs on torch's own OpenMP threads where torch has GNU's (or Intel's), whose entry point needs neither Numba's
    dispatcher nor its pool: a second pool finds the cores taken by threads of the first, which wait for work by
    spinning, and is 0.2 ms late after every operation of torch. Elsewhere `threaded` does the same on Numba's pool.
    As many workers as asked for need not come, so one alone must be able to do the work of all.
    """

    def __init__(self, function: Callable[..., Any], threaded: Threaded) -> None:
        self.function, self.threaded = function, threaded

    @cached_property
    def alone(self) -> Any:
        """The work of one worker, as a C function."""
        return compile(self.function, partial(numba.cfunc, types.void(types.int64)))

    @cached_property
    def start(self) -> Any:
        """``(workers, address of the arguments)``: run."""
        alone, pool = self.alone, torch_pool()
        if pool is None:
            return self.threaded.on
        address = alone.address
        return lambda wanted, at: pool(address, at, wanted, 0)

    def __call__(self, wanted: int, at: int) -> None:
        """Run on so many workers, with the arguments at this address."""
        if wanted == 1 or _forked:
            self.alone.ctypes(at)
        else:
            self.start(wanted, at)


@cache
def torch_pool() -> Any:
    """GOMP_parallel(function, data, threads, flags) of the OpenMP that torch runs on; None where it has none."""
    try:
        start = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # looked for in torch's libraries and all they need
    except (AttributeError, OSError):
        return None
    start.argtypes, start.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return start


def workers() -> int:
    """Threads a kernel runs on: torch's number, at most Numba's."""
    return 1 if _forked else min(torch.get_num_threads(), ALL)


def scratch(name: str, numbers: int, dtype: Any) -> Any:
    """At least `numbers` numbers of working memory that this thread keeps: any content, no page faults."""
    kept = _kept.__dict__
    key = f"{name}.{dtype.__name__}"
    if key not in kept or len(kept[key]) < numbers:
        kept[key] = np.empty(max(numbers, 1), dtype)
    return kept[key]


def flat(t: Tensor) -> Any:
    """A contiguous tensor as a one-dimensional NumPy array on the same memory; `OperandTypeError` where it is none."""
    try:
        return (t.detach() if t.requires_grad else t).numpy().reshape(-1)
    except TypeError:
        raise OperandTypeError(f"numba: kernels read numbers on the CPU, got {t.dtype} on {t.device}") from None
