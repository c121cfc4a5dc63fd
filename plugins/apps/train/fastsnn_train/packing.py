"""Tokens in sequences: documents joined with the end token, cut into blocks, shuffled by a seed, resumable anywhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from fastsnn_text import Tokenizer, load_tokenizer
from torch import Tensor

from fastsnn_core.files import beside
from fastsnn_train.sources import Corpus, DataError, documents

SPLIT = 1 << 20  # characters encoded at a time


@attrs.frozen(eq=False)
class Packed:
    """One long list of tokens and how to cut it: block i is ``tokens[i·T : i·T + T + 1]``; `end` closes documents."""

    tokens: np.ndarray
    seq_len: int
    end: int | None = None
    documents: bool = True
    characters: int = 0

    def __attrs_post_init__(self) -> None:
        if len(self.tokens) < self.seq_len + 1:
            raise DataError(
                f"the corpus has {len(self.tokens)} tokens, a sequence of seq_len {self.seq_len} needs "
                f"{self.seq_len + 1}; give more text or a shorter seq_len"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq_len

    def block(self, i: int) -> Tensor:
        """Tokens ``[T+1]`` of block i: inputs are the first T, targets the last T."""
        start = i * self.seq_len
        return torch.from_numpy(self.tokens[start : start + self.seq_len + 1].astype(np.int64))

    def batch(self, step: int, size: int, seed: int) -> Tensor:
        """Tokens ``[size, T+1]`` of one step: a fixed function of (step, size, seed), whatever was run before."""
        rows = []
        for place in range(step * size, (step + 1) * size):
            epoch, i = divmod(place, len(self))
            rows.append(self.block(int(permutation(len(self), seed, epoch)[i])))
        return torch.stack(rows)

    def resets(self, tokens: Tensor) -> Tensor | None:
        """Where documents start inside sequences ``[B,T]`` (after an end token), or None where that does not matter."""
        if self.end is None or not self.documents:
            return None
        starts = torch.zeros_like(tokens, dtype=torch.bool)
        starts[:, 1:] = tokens[:, :-1] == self.end
        return starts if bool(starts.any()) else None

    def with_length(self, seq_len: int) -> Packed:
        """The same tokens in blocks of another length."""
        return attrs.evolve(self, seq_len=seq_len)


_last: dict[tuple[int, int], tuple[int, np.ndarray]] = {}


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n blocks in an epoch."""
    held = _last.get((n, seed))
    if held is None or held[0] != epoch:
        held = _last[n, seed] = (epoch, np.random.default_rng([seed, epoch]).permutation(n))
    return held[1]


def encode(texts: Iterable[str], tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """All documents as one array of tokens, each closed by the end token; and how many characters they had."""
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    tail = [] if tokenizer.end is None else [tokenizer.end]
    pieces, characters = [], 0
    for text in texts:
        characters += len(text)
        for begin in range(0, len(text), SPLIT):
            pieces.append(np.asarray(tokenizer.encode(text[begin : begin + SPLIT]), dtype=kind))
        pieces.append(np.asarray(tail, dtype=kind))
    return (np.concatenate(pieces) if pieces else np.zeros(0, kind)), characters


@attrs.frozen(eq=False)
class Data:
    """Packed training and held-out tokens of one corpus, and the tokenizer that made them."""

    train: Packed
    held_out: Packed | None
    tokenizer: Tokenizer
    note: str = ""


def load_data(
    source: Any,
    *,
    tokenizer: Any = "byte",
    seq_len: int = 512,
    text_field: str = "text",
    holdout: float = 0.05,
    documents_end: bool = True,
    cache: str | Path = "",
) -> Data:
    """Read, tokenise and pack a corpus. Without a held-out split, the last `holdout` of the tokens is one."""
    tok = load_tokenizer(tokenizer)
    corpus = documents(source, text_field)
    train, characters = cached(corpus.train, tok, cache, f"{source}|{corpus.note}|train")
    held, held_characters = cached(corpus.held_out, tok, cache, f"{source}|{corpus.note}|held")
    if not len(held) and holdout:
        cut = len(train) - max(int(len(train) * holdout), min(seq_len + 1, len(train) // 4))
        held_characters = int(characters * (1 - cut / max(1, len(train))))
        train, held, characters = train[:cut], train[cut:], characters - held_characters
    if len(held) and len(held) < seq_len + 1:
        held_len = max(1, len(held) - 1)
    else:
        held_len = seq_len
    packed = Packed(train, seq_len, tok.end, documents_end, characters)
    kept = Packed(held, held_len, tok.end, documents_end, held_characters) if len(held) > 1 else None
    return Data(packed, kept, tok, corpus.note)


def cached(texts: Iterable[str], tok: Tokenizer, folder: str | Path, what: str) -> tuple[np.ndarray, int]:
    """`encode`, kept on disk under `folder` where one is given: memory-mapped, keyed by text and tokenizer."""
    if not folder:
        return encode(texts, tok)
    texts = list(texts)
    key = hashlib.sha256(f"{what}|{tok.describe()}|{getattr(tok, 'text', '')}".encode())
    for text in texts:
        key.update(text.encode("utf-8", "surrogatepass") + b"\0")
    path = Path(folder).expanduser() / f"{key.hexdigest()[:32]}.npy"
    if not path.is_file():
        tokens, _ = encode(texts, tok)
        with beside(path) as scratch, scratch.open("wb") as file:
            np.save(file, tokens, allow_pickle=False)
            os.fsync(file.fileno())
    return np.load(path, mmap_mode="r", allow_pickle=False), sum(map(len, texts))


def batches(data: Iterable[Any]) -> Iterator[Tensor]:
    """Token batches ``[B,T]`` of any iterable: tensors, arrays, lists, or dicts with ``input_ids`` or ``tokens``."""
    for n, item in enumerate(data):
        if isinstance(item, dict):
            found = item.get("input_ids", item.get("tokens"))
            if found is None:
                raise DataError(f"batch {n} has neither 'input_ids' nor 'tokens'; it has {', '.join(item)}")
            item = found
        tokens = torch.as_tensor(item)
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] < 2:
            raise DataError(f"batch {n} must be token ids [B, T] with T >= 2, got {tokens.dtype} {tuple(tokens.shape)}")
        yield tokens.long()


__all__ = ["Corpus", "Data", "Packed", "batches", "encode", "load_data"]
