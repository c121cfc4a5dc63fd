"""Text embeddings: the last hidden state after the final norm, averaged over tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_serve.engine.prefill_runner import PrefillRunner


class NoHiddenState(FastSNNError):
    """The model has no `norm` module, so its last hidden state is unknown."""


def final_norm(model: nn.Module) -> nn.Module:
    """The final norm, whose output is the last hidden state ``[B,T,D]``; raises `NoHiddenState` without one."""
    found = getattr(model, "norm", None)
    if not isinstance(found, nn.Module):
        raise NoHiddenState(f"{type(model).__name__} has no final norm, so no last hidden state to take a mean of")
    return found


def embed(texts: list[list[int]], runner: PrefillRunner) -> Iterator[Any]:
    """Engine job: one embedding ``[D]`` per list of token ids, prefilled chunk by chunk; yields the list at the end."""
    norm = final_norm(runner.model)
    out = []
    for ids in texts:
        total: Any = None
        state = None
        for begin in range(0, len(ids), runner.chunk):
            held: list[Tensor] = []
            handle = norm.register_forward_hook(lambda _, args, y, held=held: held.append(y.detach()))
            try:
                _, state = runner.run(ids[begin : begin + runner.chunk], state, last=False)
            finally:
                handle.remove()
            here = held[-1][0].to(torch.float64).sum(0)
            total = here if total is None else total + here
            yield None
        out.append((total / len(ids)).to(torch.float32).cpu())
    yield out
