"""The progress bar: loss, tokens per second, silent fraction and time left on a terminal; plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """A context manager; `update` after every step, `say` for a line that stays."""

    def __init__(self, total: int, start: int = 0, label: str = "training", quiet: bool = False) -> None:
        self.total, self.done, self.label, self.quiet = total, start, label, quiet
        self.terminal = sys.stderr.isatty() and not quiet
        self.known: dict[str, Any] = {}  # the newest of every fact, so that the bar does not flicker
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [
                TextColumn("{task.description}"),
                BarColumn(24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
            ]
            self.bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.done, facts="")
        self.began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, row: dict[str, Any]) -> None:
        """Move to `step`; `row` is the newest log row."""
        self.done, self.known = step, self.known | row
        if self.bar is not None:
            self.bar.update(self.task, completed=step, facts=facts(self.known))

    def log(self, row: dict[str, Any]) -> None:
        """A log row: a line where there is no bar."""
        if not self.quiet and self.bar is None:
            print(f"{self.label} {row['step']:>6}/{self.total}  {facts(row)}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)


def facts(row: dict[str, Any]) -> str:
    """``loss 2.345  1234 tok/s  silent 31 %``."""
    parts = [f"loss {row['loss']:.3f}"] if "loss" in row else []
    if "held_out" in row:
        parts.append(f"held-out {row['held_out']:.3f}")
    if row.get("tokens_per_second"):
        parts.append(f"{row['tokens_per_second']:,.0f} tok/s")
    if "silent" in row:
        parts.append(f"silent {row['silent']:.0%}  count {row['mean_count']:.2f}")
    return "  ".join(parts)
