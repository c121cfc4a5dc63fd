"""What an attention mask means for streams: padding before a text starts its stream anew, padding behind ends it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fastsnn_core.errors import ArgumentError


def read_mask(
    mask: Tensor | None, shape: tuple[int, int], seen: int, ended: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """``(reset [B,T] or None, ended [B] or None)`` of a mask ``[B, seen + T]`` of ones and zeros.

    Zeros before a row's first one are left padding: the stream starts afresh behind them, so that the row computes what
    it does alone. Zeros behind its last one are right padding, which no token before can see; such a row's state has
    read padding, and going on with it is refused, as are holes.
    """
    rows, tokens = shape
    if ended is not None and bool(ended.any()) and (mask is None or mask.shape[-1] == tokens):
        raise ArgumentError(
            "the cache has read padding behind a text; pad on the left (tokenizer.padding_side = 'left')"
        )
    if mask is None:
        return None, None
    if mask.ndim != 2 or len(mask) != rows:
        raise ArgumentError(
            f"attention_mask must be [B, T] of ones and zeros, {[rows, seen + tokens]}; got {list(mask.shape)}"
        )
    on = mask != 0
    if on.shape[1] not in (tokens, seen + tokens):
        raise ArgumentError(
            f"attention_mask has {on.shape[1]} columns; {seen} tokens are in the cache and {tokens} come: give "
            f"{seen + tokens}"
        )
    if bool(on.all()):
        return None, None
    if on.shape[1] != seen + tokens:
        raise ArgumentError(
            f"attention_mask has padding and leaves out the {seen} tokens of the cache: give all columns"
        )
    starts = on & ~F.pad(on[:, :-1], (1, 0))
    if int(starts.sum(1).max()) > 1:
        raise ArgumentError(
            "attention_mask has zeros between ones: a stream cannot skip tokens. Padding stands before a text "
            "(tokenizer.padding_side = 'left', which generate needs) or, without going on from it, behind"
        )
    reset = starts[:, seen:]
    behind = on.any(1) & ~on[:, -1]
    return (reset if bool(reset[:, 1:].any() or (seen and reset.any())) else None), (
        behind if bool(behind.any()) else None
    )
