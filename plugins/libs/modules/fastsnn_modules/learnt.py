"""What a network was trained to say, as its meta tells: the newest training on labelled samples."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastsnn_core import Objective, spec


def last_task(model: nn.Module) -> dict[str, Any]:
    """The newest milestone of a training on samples: ``task``, ``classes``, ``config``; empty where there is none."""
    past = [row for row in getattr(model, "meta", {}).get("milestones", []) if "task" in row]
    return past[-1] if past else {}


def learnt_objective(model: nn.Module) -> Objective | None:
    """The objective of that training; None where none is known."""
    table = last_task(model).get("config", {}).get("objective")
    found: Objective | None = None if table is None else spec.converter().structure(table, Objective)
    return found
