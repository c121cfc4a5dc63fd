"""Settings of healing, and where a run is."""

from __future__ import annotations

import importlib.util
from typing import Any

import attrs

from fastsnn_conversion.context import ConversionError
from fastsnn_core.errors import MissingError

WARM = 20  # steps


def need_peft() -> None:
    """Low-rank healing needs a package that may be missing."""
    if importlib.util.find_spec("peft") is None:
        raise MissingError("healing with lora needs peft: pip install peft")


@attrs.frozen
class Healing:
    """How a model is healed. The budget is `steps`, or `minutes` of wall time; `share` of it is the first stage's.

    `lr` is the peak of AdamW's rate: a short warm-up, the peak, and over the last `fall` of the budget linearly to its
    50th part, afresh in each stage, and with it the weight `hidden` of the hidden states, to 0; so a run that is
    resumed with a larger budget before its fall is the run that had it from the start. `lora` > 0 trains low-rank
    additions of that rank (by peft) instead of all weights; they are merged at the end. `written` is the share of a
    batch that the teacher writes as it goes (all of it where no text is given). `altered` is the share of tokens in
    pieces of the given text that are replaced by what the teacher would say there, others at every reading, so that a
    short text is not learnt by heart. With `thresholds` gradients pass through them, too. `every` is how many steps lie
    between two checkpoints.
    The defaults are from healing stories260K (benchmarks/NOTES.md).
    """

    steps: int | None = None
    minutes: float | None = None
    lr: float = 1e-3
    fall: float = 0.4
    batch: int = 8
    length: int = 128
    hidden: float = 10.0
    lora: int = 0
    share: float = 0.5
    written: float = 0.25
    altered: float = 0.15
    thresholds: bool = True
    seed: int = 0
    every: int = 200
    log: int = 50

    def __attrs_post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConversionError("healing needs a budget: steps or minutes, one of the two")
        if self.batch < 1 or self.length < 2:
            raise ConversionError(f"healing needs a batch of at least 1 × 2 tokens, got {self.batch} × {self.length}")
        for name in ("written", "altered"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConversionError(f"{name} is a share, 0 … 1, got {getattr(self, name)}")

    def progress(self, step: int, seconds: float, share: float) -> float:
        """How much of a stage's budget is used, 0 … 1."""
        if self.steps is not None:
            return step / max(1, round(self.steps * share))
        return seconds / max(1e-9, 60 * float(self.minutes or 0) * share)

    def falling(self, progress: float) -> float:
        """1 until the last `fall` of the budget, over which it falls to 0."""
        return min(1.0, (1.0 - progress) / self.fall) if self.fall else 1.0

    def rate(self, step: int, progress: float) -> float:
        """Learning rate of a step that `progress` of the budget lies before."""
        return self.lr * min(1.0, (step + 1) / WARM) * (0.02 + 0.98 * self.falling(progress))


@attrs.define
class Run:
    """Where a healing run is: stage, step and seconds in it, and the log so far."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = attrs.field(factory=list)
