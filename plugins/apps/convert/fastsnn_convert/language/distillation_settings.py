"""Settings of healing, and where a run is."""

from __future__ import annotations

import importlib.util
from typing import Any

import attrs

from fastsnn_conversion.context import ConversionError
from fastsnn_core.errors import MissingError

WARM = 20  # steps
LARGE = 10_000_000  # parameters from which on a model is healed sparingly


def need_peft() -> None:
    """Low-rank healing needs a package that may be missing."""
    if importlib.util.find_spec("peft") is None:
        raise MissingError("healing with lora needs peft: pip install peft")


@attrs.frozen
class Healing:
    """How a model is healed. The budget is `steps`, or `minutes` of wall time; `share` of it is the first stage's.

    What is left None follows the model's size, see `fitted`.

    `lr` is the peak of AdamW's rate for weights, `lr_constants` that for constants (biases, centres, gains of norms):
    a short warm-up, the peak, and over the last `fall` of the budget linearly to its 50th part, afresh in each stage,
    and with it the weight `hidden` of the hidden states, to 0; so a run that is resumed with a larger budget before its
    fall is the run that had it from the start. `lora` > 0 trains low-rank additions of that rank (by peft) instead of
    all weights; they are merged at the end. `written` is the share of a batch that the teacher writes as it goes (all
    of it where no text is given). `altered` is the share of tokens in pieces of the given text that are replaced by
    what the teacher would say there, others at every reading, so that a short text is not learnt by heart. With
    `thresholds` gradients pass through them, too. `every` is how many steps lie between two checkpoints.
    For `constants_first` of a stage only the constants are trained; weights need no gradient then. `embedding` says
    whether the embedding (and a tied head) is trained, `checkpointing` whether blocks are computed again on the way
    back instead of being kept.
    `activation` ("relu") changes that of the feed-forward layers over the first third, and `l1` weighs the magnitude of
    their hidden channels (`fastsnn_convert.language.relufication`). With `hold` dead zones follow, so that the sites
    stay as silent as they were (`fastsnn_convert.language.silent_shares`).
    `teacher_cache` is a folder in which the teacher's likeliest tokens are kept: another run on the same text with the
    same seed and sizes need not run the teacher (`fastsnn_convert.language.teacher_cache`).
    The defaults are from healing stories260K (benchmarks/NOTES.md).
    """

    steps: int | None = None
    minutes: float | None = None
    lr: float | None = None
    lr_constants: float | None = None
    constants_first: float | None = None
    fall: float = 0.4
    batch: int | None = None
    length: int | None = None
    hidden: float | None = None
    lora: int = 0
    share: float = 0.5
    written: float | None = None
    altered: float | None = None
    embedding: bool | None = None
    checkpointing: bool | None = None
    thresholds: bool = True
    hold: bool = True
    activation: str | None = None
    l1: float = 0.02
    teacher_cache: str | None = None
    seed: int = 0
    every: int = 200
    log: int = 50

    def __attrs_post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConversionError("healing needs a budget: steps or minutes, one of the two")
        batch, length = (1 if self.batch is None else self.batch), (2 if self.length is None else self.length)
        if batch < 1 or length < 2:
            raise ConversionError(f"healing needs a batch of at least 1 × 2 tokens, got {batch} × {length}")
        for name in ("written", "altered", "constants_first"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ConversionError(f"{name} is a share, 0 … 1, got {value}")
        if self.l1 < 0:
            raise ConversionError(f"l1 is a weight of 0 or more, got {self.l1:g}")
        for name in ("lr", "lr_constants"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConversionError(f"{name} is a learning rate above 0, got {value:g}")

    def fitted(self, width: int, parameters: int, text: bool, *, new: bool = False) -> Healing:
        """With nothing left None, for a model of `width` channels and so many parameters, and `text` or none.

        `new` says that some of its weights are new, as those of other attentions are.

        The rate falls as 1/width; constants have the same, in a large model twice as much. A model of 10 million
        parameters and more sees few tokens in a budget of minutes: only its constants are trained, for a few hundred
        pieces of text say too little about its weights (benchmarks/NOTES.md). Where weights are new or `lr`, `lora` or
        `activation` are given, they follow after 40 % of the budget, and blocks are computed again on the way back.
        Pieces are long and few, no text is read twice, so none is written or altered where there is some, hidden states
        are left alone, the embedding stays.
        """
        large = parameters >= LARGE
        rate = min(1e-3, 1e-3 * 64 / width) if self.lr is None else self.lr
        weights = new or self.lr is not None or bool(self.lora) or self.activation is not None
        first = (0.4 if weights else 1.0) if large else 0.0
        first = first if self.constants_first is None else self.constants_first
        found: dict[str, Any] = {
            "lr": rate,
            "lr_constants": 2 * rate if large else rate,
            "constants_first": first,
            "batch": 1 if large else 8,
            "length": 512 if large else 128,
            "hidden": 0.0 if large else 10.0,
            "written": 0.0 if large and text else 0.25,
            "altered": 0.0 if large else 0.15,
            "embedding": not large,
            "checkpointing": large and first < 1.0,
        }
        return attrs.evolve(self, **{name: value for name, value in found.items() if getattr(self, name) is None})

    def progress(self, step: int, seconds: float, share: float) -> float:
        """How much of a stage's budget is used, 0 … 1."""
        if self.steps is not None:
            return step / max(1, round(self.steps * share))
        return seconds / max(1e-9, 60 * float(self.minutes or 0) * share)

    def counted(self, step: int, seconds: float, share: float) -> tuple[int, int, str]:
        """``(done, total, unit)`` of a stage, in what its budget is given in: steps, or seconds."""
        if self.steps is not None:
            return step, max(1, round(self.steps * share)), "steps"
        total = max(1, round(60 * float(self.minutes or 0) * share))
        return min(total, round(seconds)), total, "s"

    def falling(self, progress: float) -> float:
        """1 until the last `fall` of the budget, over which it falls to 0."""
        return min(1.0, (1.0 - progress) / self.fall) if self.fall else 1.0

    def rate(self, step: int, progress: float, peak: float | None = None) -> float:
        """Learning rate of a step that `progress` of the budget lies before; `peak` in the place of `lr`."""
        peak = (self.lr or 1e-3) if peak is None else peak
        return peak * min(1.0, (step + 1) / WARM) * (0.02 + 0.98 * self.falling(progress))


@attrs.define
class DistillationProgress:
    """Where a healing run is: stage, step and seconds in it, and the log so far."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = attrs.field(factory=list)
