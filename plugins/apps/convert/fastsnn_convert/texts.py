"""Tokens to calibrate and heal on: from a text file, from texts, or written by the model itself (data-free)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.conversion import ConversionError
from fastsnn_text import tokenizer_of


def tokens_of(source: Any, model: nn.Module, what: str = "calibration") -> Tensor:
    """Token ids ``[N]`` of a text file (str or path), of a sequence of texts, or of ids ``[N]`` or ``[N,T]``."""
    if isinstance(source, Tensor):
        ids = source.flatten().long()
        size = int(model.spec.vocab_size)  # type: ignore[union-attr]
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise ConversionError(f"{what}: token ids must be in 0 … {size - 1}")
        return ids
    tokenizer = tokenizer_of(model)
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise ConversionError(f"{what}: {path} is no file; give a text file, a list of texts, or token ids")
        try:
            texts: Sequence[str] = [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise ConversionError(f"{what}: {path} is no text (UTF-8): {error}") from None
    else:
        texts = source
    ids = []
    for text in texts:
        ids += [*tokenizer.encode(text), *([tokenizer.end] if len(texts) > 1 and tokenizer.end is not None else [])]
    return torch.tensor(ids, dtype=torch.long)


def windows(ids: Tensor, length: int, what: str = "calibration") -> Tensor:
    """``[N, length]``: pieces that do not overlap; a text shorter than one piece is one shorter piece."""
    if len(ids) < 2:
        raise ConversionError(f"{what}: the text has {len(ids)} tokens; at least 2 are needed")
    count = len(ids) // length
    return ids[: count * length].view(count, length) if count else ids[None]


@torch.no_grad()
def write(model: nn.Module, streams: int, length: int, *, seed: int = 0, temperature: float = 1.0) -> Tensor:
    """Text that the model writes by itself ``[streams, length]``: sampled from its start token on, in parallel streams.

    After its end token a stream begins anew with the start token. A model without either begins with random tokens.
    """
    size = int(model.spec.vocab_size)  # type: ignore[union-attr]
    tokenizer: Any = tokenizer_of(model)
    start = tokenizer.start if tokenizer.start is not None else tokenizer.end
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, size, (streams, 1), generator=generator)
    token = first if start is None else torch.full((streams, 1), start)
    rows, state = [token], None
    for _ in range(length - 1):
        logits, state = model(token, state, return_state=True, last=True)
        odds = (logits[:, -1].float() / temperature).softmax(-1)
        token = torch.multinomial(odds, 1, generator=generator)
        if tokenizer.end is not None and start is not None:
            token = torch.where(rows[-1] == tokenizer.end, start, token)
        rows.append(token)
    return torch.cat(rows, 1)
