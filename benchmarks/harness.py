"""What every benchmark shares: interleaved timing, paired ratios, the machine's bandwidth, a table and JSON.

Machines are noisy and shared, so nothing is timed alone: each round runs every row once, in an order that turns, and a
ratio is the median over rounds of the two times *of that round*. A round in which this process waited for a core for
more than 3 % of the time (Linux tells) is thrown away whole and run again, up to four times as many rounds in all; how
many were lost is part of the result. The bandwidth that a floor is computed from is a row like the others. A row whose
package is missing is None and is reported as skipped, never left out in silence.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], Any]
Times = dict[str, list[float]]


def interleave(rows: dict[str, Run | None], rounds: int = 9, calls: int = 1, warm: int = 2) -> Times:
    """Seconds per call of every row that is not None: `rounds` values each, every value the mean of `calls` calls.

    The entry ``"disturbed rounds"`` holds one number: rounds thrown away, or -1 where too few were quiet and all count.
    """
    present = {name: run for name, run in rows.items() if run is not None}
    for run in present.values():
        for _ in range(warm):
            run()
    return in_rounds(list(present), lambda name: timed(present[name], calls), rounds)


def timed(run: Run, calls: int) -> dict[str, float]:
    """Seconds per call, of all calls, and how long this process waited for a core meanwhile."""
    delay, start = waited(), time.perf_counter()
    for _ in range(calls):
        run()
    whole = time.perf_counter() - start
    return {"seconds": whole / calls, "whole": whole, "waited": waited() - delay}


def in_rounds(names: list[str], ask: Callable[[str], dict[str, float]], rounds: int) -> Times:
    """`interleave` over whatever answers `ask` with a `timed`: a function here, or a process of its own."""
    quiet: list[dict[str, float]] = []
    noisy: list[dict[str, float]] = []
    for r in range(4 * rounds):
        answers = {name: ask(name) for name in names[r % len(names) :] + names[: r % len(names)]}
        delay, whole = (sum(answer[key] for answer in answers.values()) for key in ("waited", "whole"))
        (quiet if delay < 0.03 * whole else noisy).append({n: answer["seconds"] for n, answer in answers.items()})
        if len(quiet) == rounds:
            break
    kept = quiet if len(quiet) >= min(3, rounds) else quiet + noisy
    times = {name: [seconds[name] for seconds in kept] for name in names}
    return times | {"disturbed rounds": [len(noisy) if kept is quiet else -1]}


def waited() -> float:
    """Seconds that threads of this process have been ready to run but had no core; 0 where the system does not tell."""
    total = 0
    for entry in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread may end while we look
            total += int(entry.read_text().split()[1])
    return total * 1e-9


def median(times: Times, name: str) -> float | None:
    """Median seconds of a row, None where it was skipped."""
    return statistics.median(times[name]) if name in times else None


def ratio(times: Times, slow: str, fast: str) -> float | None:
    """How many times faster `fast` is than `slow`: the median of the ratios of single rounds."""
    if slow not in times or fast not in times:
        return None
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def reader(megabytes: int = 256) -> tuple[Run, int]:
    """``(run, bytes)``: one pass that only reads, larger than any cache; torch's 64-bit sum."""
    block = torch.ones(megabytes << 17, dtype=torch.int64)
    return lambda: block.sum(), block.nbytes


def copier(megabytes: int = 128) -> tuple[Run, int]:
    """``(run, bytes)``: one pass that reads and writes; bytes counts both."""
    source = torch.ones(megabytes << 17, dtype=torch.int64)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def disturbance(times: Times) -> str:
    """What became of the rounds in which other processes wanted the cores."""
    lost = int(times["disturbed rounds"][0])
    return "too few quiet rounds: all count, expect noise" if lost < 0 else f"{lost} disturbed rounds thrown away"


def machine() -> dict[str, Any]:
    """What a figure depends on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    found = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    return found | {"python": platform.python_version()}


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A plain text table; numbers to three digits, None as ``skipped``."""

    def cell(value: Any) -> str:
        if value is None:
            return "skipped"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    cells = [head] + [[cell(v) for v in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    first, *rest = widths
    return "\n".join("  ".join([row[0].ljust(first), *map(str.rjust, row[1:], rest)]) for row in cells)


def emit(result: dict[str, Any], path: str | None) -> None:
    """Write a result as JSON where a path was given."""
    if path:
        Path(path).write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")


def pieces_of(asked: str | None, known: Sequence[str]) -> list[str]:
    """The pieces of a script that were asked for, with commas; all where none was."""
    pieces = asked.split(",") if asked else list(known)
    if odd := [p for p in pieces if p not in known]:
        raise SystemExit(f"no piece {odd[0]}; pieces: {', '.join(known)}")
    return pieces
