"""Labelled samples under the scopes: what is taken for what, and accuracy and spikes after every step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_core.subject import Data
from fastsnn_scope.quality import confusion

if TYPE_CHECKING:
    from fastsnn_train.samples.prepare import SampleData

SAMPLES, DECIDED, BATCH = 16, 256, 64
"""Samples that are looked at; of which accuracy over steps is taken; run together."""


@attrs.frozen(eq=False)
class Labelled:
    """The first samples ``[B, …]`` of a source with their targets, and the rest of it."""

    found: SampleData
    inputs: Tensor
    targets: Tensor
    about: Data
    decided: int

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none where the targets are numbers, or a class for every step."""
        task = self.found.task
        known = self.found.train.classes or range(task.classes)
        return [str(n) for n in known][: task.classes] if task.kind == "classification" else []

    def truth_of(self, i: int) -> str:
        """The class of a sample, where it has one."""
        return self.classes[int(self.targets[i])] if self.classes else ""

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> Tensor:
        """``[B,T,C]`` of these samples, in evaluation mode."""
        training, device = model.training, next(model.parameters()).device
        model.eval()
        try:
            return self.found.task.outputs(model, self.inputs.to(device), model)
        finally:
            model.train(training)

    def confusion(self, model: nn.Module) -> Data | None:
        """What is taken for what; None where there are no classes."""
        if not self.classes:
            return None
        return confusion(self.targets, self.found.task.answers(self.outputs(model)), self.classes)

    def decisions(self, model: nn.Module) -> Data | None:
        """`fastsnn_train.decisions` of the first samples, and how many they are; None where one output is all."""
        if not self.classes or self.outputs(model).shape[1] < 2:
            return None
        from fastsnn_train import decisions

        n = min(self.decided, len(self.found.train))
        part = self.found.train.part(range(n))
        return {"samples": n} | decisions(model, part, self.found.task, batch=BATCH, quiet=True)


def labelled_samples(model: nn.Module, source: Any, most: int | None, other: bool) -> Labelled | None:
    """The samples of `data=`; None without. `other`: text or tokens were given."""
    if source is None:
        if most is not None:
            raise FastSNNError("samples = how many goes with data = labelled samples")
        return None
    if most is not None and most < 1:
        raise FastSNNError(f"samples must be at least one, got {most}")
    if other:
        raise FastSNNError("give data, or text or tokens, not both")
    try:
        from fastsnn_train.samples.batches import read_samples
        from fastsnn_train.samples.of_model import samples_of
    except ImportError as error:
        raise FastSNNError(f"data needs {error.name}: pip install fastsnn-train") from None
    found = samples_of(model, source)
    index = list(range(min(SAMPLES if most is None else most, len(found.train))))
    inputs, targets = read_samples(found.train, index, found.task.shape, found.task.classes)
    called = str(source) if isinstance(source, str | Path) else found.train.where
    about = {"kind": "samples", "source": called, "samples": len(index), "of": len(found.train)}
    return Labelled(found, inputs, targets, about, DECIDED if most is None else most)
