"""Noticing that other programs want the cores that our threads wait for each other on.

OpenMP's threads spin at the end of every operator until the last has come. On an idle machine that is the fastest way;
beside busy neighbours the last one may not be running at all, and two threads become many times slower than one
(`benchmarks/contended.py` has the table). No setting wins everywhere, so nothing is changed: loops that run for long
call `tick`, and once per process a warning says what is going on and what helps.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

log = logging.getLogger("fastsnn")
WINDOW = 2.0  # seconds of one look
IN_A_ROW = 2  # looks that must agree
SLACK = 0.5  # cores that may be missing: background noise

_last: tuple[float, float, float] | None = None  # wall clock, our CPU time, everybody's, of the cores that we may use
_bad = 0
_said = False


def tick() -> None:
    """Called once per step of a long loop; looks every two seconds, and warns once."""
    global _last, _bad, _said
    now = time.monotonic()
    if _said or (_last is not None and now - _last[0] < WINDOW):
        return
    busy = busy_seconds()
    if busy is None:
        _said = True  # no such system: never look again
        return
    before, _last = _last, (now, time.process_time(), busy)
    if before is None or now - before[0] > 4 * WINDOW:  # another loop has begun meanwhile
        _bad = 0
        return
    wall = now - before[0]
    others = max(0.0, (busy - before[2] - (_last[1] - before[1])) / wall)
    _bad = _bad + 1 if (text := verdict(threads(), cores(), others)) else 0
    if _bad >= IN_A_ROW:
        _said = True
        log.warning("%s", text)


def verdict(threads: int, cores: float, others: float) -> str:
    """What to say of `threads` on `cores` of which other programs use `others`; empty where there is room for all."""
    free = cores - others
    if threads < 2 or threads <= free + SLACK:
        return ""
    if others > SLACK:
        why = f"other programs use {others:.1f} of {cores:g} cores"
    else:
        why = f"this process may use {cores:g} {'core' if cores == 1 else 'cores'}"
    fewer = max(1, int(free + 0.25))
    return (
        f"{why} while FastSNN runs on {threads} threads, which wait for each other at every step: "
        f"OMP_NUM_THREADS={fewer} is often several times as fast here"
    )


def threads() -> int:
    """Threads of one operator."""
    import torch

    return torch.get_num_threads()


def cores() -> float:
    """Cores that this process may use: its affinity, and the quota of its container."""
    found = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            found = min(found, int(quota) / int(period))
    return found


def busy_seconds() -> float | None:
    """Seconds that the cores we may use have been busy since the start, whoever it was; None where nobody says."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        mine = {f"cpu{n}" for n in os.sched_getaffinity(0)}
        rows = [line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()]
        total = 0
        for row in rows:
            if row and row[0] in mine:
                user, nice, system, _idle, _wait, irq, soft, steal = (int(n) for n in row[1:9])
                total += user + nice + system + irq + soft + steal
        return total / os.sysconf("SC_CLK_TCK")
    return None
