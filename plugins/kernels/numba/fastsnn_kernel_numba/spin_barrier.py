"""Work shared out inside one parallel region: atomic counters, and phases that begin when the phase before has ended.

A phase is a number of tasks. Workers draw task numbers from a counter until none is left, and wait for those that
others have drawn. Nobody waits for a worker that never came: with a single thread all tasks are simply its own, so no
pool, however it shares out iterations, can bring this to a halt. A phase costs a few hundred nanoseconds, starting a
region of its own 2.3 µs.

A worker that the system held up may leave `wait_for_tasks` when the others are many phases ahead and have overwritten
what the phase computed. It draws no task of theirs as long as it counts phases as they do, so how many there are may
not depend on what a phase found. What a worker computes for itself between two phases counts only when it draws a task
of the second: as long as one is left, nobody is further ahead.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastsnn_kernel_numba.numba_runtime import compile

LINE = 8  # 64-bit numbers per cache line: every counter has one of its own
SPINS = 2000  # looks at a counter before the core is offered to somebody else
PAUSE = platform.machine().lower() in ("x86_64", "amd64")
YIELD = sys.platform != "win32"


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def atomic_add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index] += value`` of 64-bit integers, as one operation; what was there before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _place(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def atomic_load(typing: Any, array: Any, index: Any) -> Any:
    """``array[index]`` as others have left it; what they wrote before it can be read after it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_place(context, builder, signature, args), "seq_cst", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def cpu_pause(typing: Any) -> Any:
    """The spin-wait hint of x86 (PAUSE); nothing on other processors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if PAUSE:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=kind), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def sched_yield(typing: Any) -> Any:
    """``sched_yield()``: let another thread run on this core; nothing where the system has no such call."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if YIELD:
            kind = ir.FunctionType(ir.IntType(32), [])
            existing = builder.module.globals.get("sched_yield")
            builder.call(existing or ir.Function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@compile
def next_task(sync, phase):  # type: ignore[no-untyped-def]
    """The next task of a phase."""
    return atomic_add(sync, 2 * LINE * phase, 1)


@compile
def finish_task(sync, phase):  # type: ignore[no-untyped-def]
    """A task that was drawn is done; how many of the phase were done before it."""
    return atomic_add(sync, 2 * LINE * phase + LINE, 1)


@compile
def next_after(sync, phase, task, tasks):  # type: ignore[no-untyped-def]
    """A task that was drawn is done; the next one, without asking where this one was the last to be drawn or done."""
    if finish_task(sync, phase) == tasks - 1 or task == tasks - 1:
        return tasks
    return next_task(sync, phase)


@compile
def wait_for_tasks(sync, phase, tasks):  # type: ignore[no-untyped-def]
    """Until all tasks of a phase are done."""
    spins = 0
    while atomic_load(sync, 2 * LINE * phase + LINE) < tasks:
        cpu_pause()
        spins += 1
        if spins > SPINS:
            sched_yield()
