"""Token ids are checked before the embedding reads them: an id without a row is an error that says which and where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError


class TokenError(FastSNNError, IndexError):
    """Token ids that the model has no row for, or that are no ids."""


def check_token_ids(tokens: Any, vocab_size: int | None, where: str = "tokens") -> Tensor:
    """`tokens`, if all are ids in 0 … `vocab_size` - 1 (None: any size); else `TokenError` names the first that is not.

    Values are looked at on the CPU only: on another device that would make the host wait.
    """
    if not isinstance(tokens, Tensor):
        raise TokenError(f"{where}: expected token ids [B, T] as a tensor of integers, got {type(tokens).__name__}")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TokenError(f"{where}: token ids are integers, got {tokens.dtype}")
    if tokens.device.type != "cpu" or not tokens.numel() or torch.compiler.is_compiling():
        return tokens
    low, high = (int(v) for v in tokens.aminmax())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        wrong = (tokens < 0) if low < 0 else (tokens >= (vocab_size or 0))
        place = tuple(int(i) for i in wrong.nonzero()[0])
        names = ("row", "position") if len(place) == 2 else ("index",) * len(place)
        at = ", ".join(f"{name} {i}" for name, i in zip(names, place))
        size = "" if vocab_size is None else f" the model's vocabulary of {vocab_size} tokens (0 … {vocab_size - 1})"
        what = f"is outside{size}" if size else "is negative"
        raise TokenError(f"{where}: token id {int(tokens[place])}{at and f' at {at}'} {what}")
    return tokens


def vocabulary_of(model: torch.nn.Module) -> int | None:
    """How many tokens a language model knows, by its spec or its first embedding; None where neither says."""
    size = getattr(getattr(model, "spec", None), "vocab_size", None)
    if size is None:
        size = next((m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding)), None)
    return size
