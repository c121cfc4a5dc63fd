"""The training log as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from attrs import frozen

from fastsnn_core import Run, Session, Tracker, hookimpl
from fastsnn_core.files import write_text
from fastsnn_core.training_run import Row

__version__ = "0.1.0"


@frozen
class Jsonl(Tracker):
    """One JSON object per log row and line in ``log.jsonl`` of the run's folder, written as the run goes.

    A resumed run begins with the rows of its checkpoint, so that no step stands there twice; the log of an earlier run
    in the same folder is kept as ``log-1.jsonl``, ``log-2.jsonl``, … Without a folder nothing is written.
    """

    name = "jsonl"

    def start(self, run: Run) -> Session:
        """Open the log of a run."""
        if run.out is None:
            return Session()
        path = run.out / "log.jsonl"
        if path.exists() and not run.history:
            path.rename(free_log_name(path))
        write_text(path, "".join(line(row) for row in run.history))
        return JsonlSession(path)


class JsonlSession(Session):
    """Appends; a line is one write, so a killed run leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        """A row as a line."""
        self.file.write(line(row))
        self.file.flush()

    def end(self, error: BaseException | None) -> None:
        """Close the file."""
        self.file.close()


def line(row: Row) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def free_log_name(path: Path) -> Path:
    """``log-1.jsonl``, or the first such name that is free."""
    names = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(1, 1 << 30))
    return next(name for name in names if not name.exists())


@hookimpl
def fastsnn_trackers() -> list[type[Tracker]]:
    """This plugin's trackers."""
    return [Jsonl]
