"""Training progress: a bar with loss, tokens/s, silent fraction and time left on a terminal; plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from fastsnn_console import progress
from fastsnn_core.moved import renamed


class TrainingProgress:
    """Context manager for the progress display: `update` after every step, `log` per log row, `say` for a message."""

    def __init__(
        self, total: int, start: int = 0, label: str = "training", quiet: bool = False, *, unit: str = ""
    ) -> None:
        self.bar = progress.Progress(label, total, unit, start=start, quiet=quiet, delay=0.0, lines=False)
        self.known: dict[str, Any] = {}  # latest value of every metric, so that the bar does not flicker

    def __enter__(self) -> TrainingProgress:
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, trace)

    def update(self, step: int, row: dict[str, Any]) -> None:
        """Move to `step`; `row` is the newest log row."""
        self.known |= row
        self.bar.update(step, progress_facts(self.known))

    def log(self, row: dict[str, Any]) -> None:
        """Print a log row with the remaining time, if there is no bar."""
        if not self.bar.terminal:
            left = self.bar.left()
            to_go = f"  {progress.clock(left)} left" if left else ""
            self.say(f"{self.bar.title} {row['step']:>6}/{self.bar.total} {self.bar.unit} {progress_facts(row)}{to_go}")

    def say(self, text: str) -> None:
        """Print a message above the bar."""
        self.bar.say(text)


def progress_facts(row: dict[str, Any]) -> str:
    """Metrics as text, such as ``loss 2.345  1,234 tok/s  silent 31%``."""
    parts = [f"step {row['steps']}"] if "steps" in row else []
    parts += [f"loss {row['loss']:.3f}"] if "loss" in row else []
    if "held_out" in row:
        parts.append(f"held-out {row['held_out']:.3f}")
    if "accuracy" in row:
        parts.append(f"accuracy {row['accuracy']:.2%}")
    for name, unit in (("tokens_per_second", "tok/s"), ("samples_per_second", "samples/s")):
        if row.get(name):
            parts.append(f"{row[name]:,.0f} {unit}")
    if "silent" in row:
        parts.append(f"silent {row['silent']:.0%}  count {row['mean_count']:.2f}")
    if row.get("silent_bytes"):
        parts.append(f"silent bytes {row['silent_bytes']:.0%}")
    return "  ".join(parts)


__getattr__ = renamed(__name__, {"Progress": "TrainingProgress"})
