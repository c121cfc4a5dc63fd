"""The training log as TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from fastsnn_core import Run, Session, Tracker, hookimpl
from fastsnn_core.errors import MissingError
from fastsnn_core.training_run import Row

__version__ = "0.1.0"


@frozen
class TensorBoard(Tracker):
    """Every number of a log row as a scalar at its step, nested ones by path (``gradient/layers.0``).

    Event files go to ``tensorboard/`` in the run's folder; a resumed run hides what was written after its checkpoint
    (TensorBoard's purge step). Needs the package tensorboard, which is imported when a run starts. Without a folder
    nothing is written.
    """

    name = "tensorboard"

    def start(self, run: Run) -> Session:
        """Open the event file of a run."""
        if run.out is None:
            return Session()
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingError(f"the tensorboard tracker needs {error.name}: pip install tensorboard") from None
        purge = run.history[-1]["step"] + 1 if run.history else None
        return TensorBoardSession(SummaryWriter(str(run.out / "tensorboard"), purge_step=purge))


class TensorBoardSession(Session):
    """Writes scalars; what a checkpoint covers is on disk with it."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, row: Row) -> None:
        """A row's numbers."""
        for name, value in scalars(row):
            self.writer.add_scalar(name, value, row["step"])

    def saved(self, path: Path) -> None:
        """Flush."""
        self.writer.flush()

    def end(self, error: BaseException | None) -> None:
        """Close the event file."""
        self.writer.close()


def scalars(row: Row, path: str = "") -> Iterator[tuple[str, float]]:
    """``(path, number)`` of every number but the step."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{path}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and (path or key != "step"):
            yield f"{path}{key}", float(value)


@hookimpl
def fastsnn_trackers() -> list[type[Tracker]]:
    """This plugin's trackers."""
    return [TensorBoard]
