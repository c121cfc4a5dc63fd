"""What masks and positions mean for streams: padding and packed texts start a stream anew, padding behind ends it."""

from __future__ import annotations

from typing import Any

import torch
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


def read_positions(given: Tensor | None, mask: Tensor | None, tokens: int) -> Tensor | None:
    """Where position_ids ``[B,T]`` start again at 0 (packed texts), ``[B,T]`` or None; other jumps are refused."""
    if given is None or given.ndim != 2:
        return None
    jumps = given[:, 1:] - given[:, :-1] != 1
    if mask is not None and mask.ndim == 2 and mask.shape[1] >= tokens:
        here = mask[:, -tokens:] != 0
        jumps &= here[:, 1:] & here[:, :-1]
    starts = jumps & (given[:, 1:] == 0)
    if bool((jumps & ~starts).any()):
        raise ArgumentError(
            "position_ids must count up from each text's first token, at 0: a stream cannot skip positions"
        )
    return F.pad(starts, (1, 0)) if bool(starts.any()) else None


PACKED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
"""How a flattening collator says once more where packed texts begin (flash attention, Mamba)."""


def check_packing(position_ids: Tensor | None, shape: tuple[int, int], packed: dict[str, Any]) -> None:
    """`packed` (see PACKED) says what the position_ids of a batch ``[B,T]`` say, or is refused.

    ``cu_seq_lens_q``: the first token of each text in the flattened batch, and the end; ``seq_idx [B,T]``: which text.
    """
    if position_ids is None or tuple(position_ids.shape) != shape:
        raise ArgumentError(
            f"{', '.join(sorted(packed))}: packed texts need position_ids {list(shape)} that start at 0"
        )
    begins = position_ids == 0
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if name in packed:
            ends = torch.tensor([begins.numel()], device=begins.device)
            wanted = torch.cat([begins.flatten().nonzero().flatten(), ends])
            if packed[name].tolist() != wanted.tolist():
                raise ArgumentError(f"{name} and position_ids begin their texts at different tokens")
    if "seq_idx" in packed:
        other = F.pad(packed["seq_idx"][:, 1:] != packed["seq_idx"][:, :-1], (1, 0), value=True)
        if not torch.equal(other, begins):
            raise ArgumentError("seq_idx and position_ids begin their texts at different tokens")
