"""What a tracker sees of training: the run it is told of, and the session it opens on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch import nn

Row = dict[str, Any]
"""One row of the log: ``step``, then what was measured (loss, held_out, tokens_per_second, gradient norms, …)."""


@attrs.define(eq=False)
class Run:
    """One training run.

    `out` is its folder (None where nothing may be written), `config` its settings as plain data, `total` the steps it
    is meant to take, `history` the rows so far, this one included: not empty at the start of a resumed run, and then
    what a tracker wrote of later steps is void. `stop` ends the run after the current step, as early stopping does.
    """

    model: nn.Module
    out: Path | None = None
    config: dict[str, Any] = attrs.field(factory=dict)
    total: int = 0
    history: list[Row] = attrs.field(factory=list)
    stopping: str = ""

    def stop(self, reason: str) -> None:
        """Ask for an orderly end: the step is finished, evaluated and saved."""
        self.stopping = self.stopping or reason


class Session:
    """A tracker's own object for one run; override what is wanted.

    ``log(row)`` for every row (rows with ``held_out`` are evaluations), ``saved(path)`` for every checkpoint,
    ``end(error)`` once, with None where the run ended well. A session that raises is left out of the rest of the run,
    with a warning: it never costs the run.
    """

    def log(self, row: Row) -> None:
        """A row of the log."""

    def saved(self, path: Path) -> None:
        """A checkpoint is whole at `path`."""

    def end(self, error: BaseException | None) -> None:
        """The run is over."""
