"""Tokens in sequences: documents joined with the end token, cut into blocks, shuffled by a seed, resumable anywhere."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from fastsnn_text import Tokenizer, load_tokenizer, train_bpe
from fastsnn_train.data.documents import DataError, Document, plain_text
from fastsnn_train.data.sources import Corpus, documents
from fastsnn_train.data.tokenize import cached, tokenized

log = logging.getLogger("fastsnn")
BPE_DOCUMENTS = 1_000_000  # a tokenizer is trained on the first of them
HELD_BLOCKS = 64  # sequences held out of a streamed corpus


@attrs.frozen(eq=False)
class Packed:
    """One long list of tokens and how to cut it: block i is ``tokens[i·T : i·T + T + 1]``; `end` closes documents.

    Tokens may be marked as context, or as ends that close no document (`fastsnn_train.data.token_batches`).
    """

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
        return document_starts(tokens, self.end if self.documents else None)

    def part(self, begin: int, end: int) -> Packed:
        """Tokens from `begin` to `end` as a corpus of their own."""
        return attrs.evolve(self, tokens=self.tokens[begin:end])

    def with_length(self, seq_len: int) -> Packed:
        """The same tokens in blocks of another length."""
        return attrs.evolve(self, seq_len=seq_len)


def document_starts(tokens: Tensor, end: int | None) -> Tensor | None:
    """True at each token of ``[B,T]`` behind an `end` token; None if there is none."""
    if end is None:
        return None
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, 1:] = (tokens[:, :-1] == end) | (tokens[:, :-1] == ~end)
    return starts if bool(starts.any()) else None


_last: dict[tuple[int, int], tuple[int, np.ndarray]] = {}


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n blocks in an epoch."""
    held = _last.get((n, seed))
    if held is None or held[0] != epoch:
        held = _last[n, seed] = (epoch, np.random.default_rng([seed, epoch]).permutation(n))
    return held[1]


@attrs.frozen(eq=False)
class Data:
    """Training and held-out tokens of one corpus, and the tokenizer that made them."""

    train: Any
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
    workers: int = 1,
    streaming: bool = False,
    shuffle_buffer: int = 256,
) -> Data:
    """Read, tokenise and pack a corpus. Without a validation split, the last `holdout` of the tokens is used as one.

    ``tokenizer="bpe:4096"`` trains a byte-level BPE on the corpus first. With `streaming` (and for a `datasets`
    IterableDataset) documents are read while training, and without a held-out split the first few are held out.
    """
    corpus = documents(source, text_field, streaming=streaming)
    tok = make_tokenizer(tokenizer, corpus.train)
    if streaming or corpus.endless:
        return stream_data(corpus, tok, seq_len, holdout, documents_end, shuffle_buffer, workers)
    train, characters = cached(corpus.train, tok, cache, f"{source}|{corpus.note}|train", workers)
    held, held_characters = cached(corpus.held_out, tok, cache, f"{source}|{corpus.note}|held", workers)
    if not len(held) and holdout:
        cut = len(train) - max(int(len(train) * holdout), min(seq_len + 1, len(train) // 4))
        held_characters = int(characters * (1 - cut / max(1, len(train))))
        train, held, characters = train[:cut], train[cut:], characters - held_characters
    note = corpus.note
    if omitted := corpus.omitted():
        log.warning("%s: left out %s", corpus.note.partition(":")[0] or "the corpus", omitted)
        note += f"; left out {omitted}"
    packed = Packed(train, seq_len, tok.end, documents_end, characters)
    return Data(packed, hold(held, seq_len, tok, documents_end, held_characters), tok, note)


def make_tokenizer(tokenizer: Any, texts: Iterable[Document]) -> Tokenizer:
    """``"bpe:4096"`` trained on `texts`, or what `load_tokenizer` makes of anything else."""
    if not isinstance(tokenizer, str) or not tokenizer.startswith("bpe:"):
        return load_tokenizer(tokenizer)
    size = tokenizer.removeprefix("bpe:")
    if not size.isdecimal():
        raise DataError(f"{tokenizer!r} is no tokenizer; write 'bpe:4096' for a vocabulary of 4096")
    return train_bpe(map(plain_text, itertools.islice(texts, BPE_DOCUMENTS)), int(size))


def hold(tokens: np.ndarray, seq_len: int, tok: Tokenizer, documents_end: bool, characters: int) -> Packed | None:
    """Held-out tokens, in shorter sequences where they are few; None where there are none."""
    if len(tokens) < 2:
        return None
    return Packed(tokens, min(seq_len, len(tokens) - 1), tok.end, documents_end, characters)


def stream_data(
    corpus: Corpus, tok: Tokenizer, seq_len: int, holdout: float, documents_end: bool, buffer: int, workers: int
) -> Data:
    """A corpus that is streamed during training; at most `HELD_BLOCKS` sequences of it are held out."""
    from fastsnn_train.data.streaming import Streamed

    skip, held, size, characters = 0, [], 0, 0
    source = iter(corpus.held_out)
    first = next(source, None)
    if first is not None or holdout:
        texts = itertools.chain([first], source) if first is not None else iter(corpus.train)
        for text in texts:
            held.append(tokenized(text, tok))
            size, characters = size + len(held[-1]), characters + len(plain_text(text))
            if size > HELD_BLOCKS * seq_len:
                break
        skip = 0 if first is not None else len(held)
    packed = hold(np.concatenate(held), seq_len, tok, documents_end, characters) if held else None
    train = Streamed(corpus.train, tok, seq_len, tok.end, documents_end, buffer, skip, workers)
    return Data(train, packed, tok, corpus.note)


__all__ = ["Corpus", "Data", "Packed", "load_data"]
