"""Early stopping: ends a run whose evaluations have stopped getting better."""

from __future__ import annotations

from attrs import frozen

from fastsnn_core import Run, Session, Tracker, hookimpl, param
from fastsnn_core.training_run import Row

__version__ = "0.1.0"


@frozen
class EarlyStopping(Tracker):
    """Stops where the best of the last `patience` evaluations is not better than the best before by `least`.

    Rows of before a resume count, too. With ``[train] bundle = "best"`` the weights of the best evaluation are kept.
    """

    name = "early_stopping"
    patience: int = param(3, ge=1, unit="evaluations", doc="without improvement before the run is ended")
    figure: str = param("held_out", doc="column of the log that is watched", draw=("held_out", "accuracy"))
    largest: bool = param(False, doc="larger is better, as for accuracy")
    least: float = param(0.0, ge=0.0, doc="improvement that counts")

    def start(self, run: Run) -> Session:
        """The session of one run."""
        return EarlyStoppingSession(run, self)


class EarlyStoppingSession(Session):
    """Watches one column."""

    def __init__(self, run: Run, how: EarlyStopping) -> None:
        self.run, self.how = run, how

    def log(self, row: Row) -> None:
        """A row of the log: looked at where it is an evaluation."""
        how, sign = self.how, -1.0 if self.how.largest else 1.0
        if how.figure not in row:
            return
        seen = [sign * r[how.figure] for r in self.run.history if how.figure in r]
        late, early = seen[-how.patience :], seen[: -how.patience]
        if early and (min(late) >= min(early) or min(early) - min(late) < how.least):
            self.run.stop(f"{how.figure} is no better than {sign * min(early):.4g} for {how.patience} evaluations")


@hookimpl
def fastsnn_trackers() -> list[type[Tracker]]:
    """This plugin's trackers."""
    return [EarlyStopping]
