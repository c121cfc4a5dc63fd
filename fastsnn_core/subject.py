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

    `labels` names the tokens of the first sequence, where they have a text. `outputs` is what a network that reads no
    tokens gave (its first tensor, ``[B, …]``), `truth` the class of the first sample where that is known.
    """

    model: nn.Module
    inputs: Tensor
    trace: Trace
    labels: tuple[str, ...] = ()
    outputs: Any = None
    truth: str = ""

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
            found = model(inputs)
    finally:
        model.train(training)
    first = found[0] if isinstance(found, tuple) else found  # of a language model it is large, and not kept
    return Subject(model, inputs, trace, labels, first if inputs.is_floating_point() else None)


Data = dict[str, Any]
