"""Samples for a trained network: read as its training read them."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastsnn_modules.learnt import last_task, learnt_objective
from fastsnn_train.samples.prepare import SampleData, sample_data, sample_sets


def samples_of(
    model: nn.Module, source: Any, *, x: str = "", y: str = "", task: str = "", quiet: bool = False
) -> SampleData:
    """The test samples of `source` where it has some, else all of it, as `model` learnt to read them.

    Task, objective, names of the classes and the length of padded series are those in its meta, where it was trained
    here; `task` stands in for the first. `x` and `y` are columns of tables. `DataError` names what does not fit.
    """
    sets = sample_sets(source, x, y)
    trained = last_task(model)
    length = trained.get("length")
    return sample_data(
        model,
        sets.get("test", sets["train"]),
        task=task or trained.get("task", ""),
        objective=learnt_objective(model),
        holdout=0.0,
        change=() if length is None else (f"pad:{length}",),
        quiet=quiet,
        names=tuple(trained.get("classes", ())),
    )
