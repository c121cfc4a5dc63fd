"""What a scope looks at: a model, an input, and every spike that input made."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.probe import Trace, probe


@attrs.frozen(eq=False)
class Subject:
    """`inputs` is what the model was run on (tokens ``[B,T]``, or images), `trace` the spikes by site name.

    `labels` names the tokens of the first sequence, where they have a text.
    """

    model: nn.Module
    inputs: Tensor
    trace: Trace
    labels: tuple[str, ...] = ()

    @property
    def is_language_model(self) -> bool:
        """Does the model take token ids?"""
        return not self.inputs.is_floating_point()


@torch.no_grad()
def observe(model: nn.Module, inputs: Tensor, labels: tuple[str, ...] = ()) -> Subject:
    """Run `model` once in evaluation mode and keep what it spiked."""
    training = model.training
    model.eval()
    try:
        with probe(model) as trace:
            model(inputs)
    finally:
        model.train(training)
    return Subject(model, inputs, trace, labels)


Data = dict[str, Any]
