"""Sequences of a corpus larger than memory: documents are tokenised on the fly, cut, and shuffled in a buffer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from fastsnn_text import Tokenizer
from fastsnn_train.data.documents import DataError, Document
from fastsnn_train.data.packing import document_starts
from fastsnn_train.data.tokenize import encoded

Position = tuple[dict[str, Any], dict[str, Tensor]]


@attrs.frozen(eq=False)
class Streamed:
    """Documents (read again from the start at every epoch), their tokenizer, and how they become sequences.

    The first `skip` documents belong to the held-out part. `buffer` sequences are held, and a seeded draw among them
    is what shuffles; a block is ``T + 1`` tokens, its last being the next one's first.
    """

    texts: Iterable[Document]
    tokenizer: Tokenizer
    seq_len: int
    end: int | None = None
    documents: bool = True
    buffer: int = 256
    skip: int = 0
    workers: int = 1

    def reader(
        self, seed: int, position: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None
    ) -> StreamReader:
        """A reader from the start, or from the position of another reader."""
        return StreamReader(self, seed, position, tensors or {})

    def resets(self, tokens: Tensor) -> Tensor | None:
        """Where documents start inside sequences ``[B,T]``, or None."""
        return document_starts(tokens, self.end if self.documents else None)


class StreamReader:
    """One pass after the other over a `Streamed`: ``next()`` gives tokens ``[T+1]``."""

    def __init__(self, data: Streamed, seed: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        self.data, self.seed = data, seed
        place = position or {"epoch": 0, "documents": 0, "drawn": 0}
        self.epoch, self.read, self.drawn = place["epoch"], place["documents"], place["drawn"]
        self.left = tensors.get("left", torch.zeros(0, dtype=torch.int64)).numpy()
        self.held = list(tensors["held"]) if "held" in tensors else []
        self.source = self.documents()

    def documents(self) -> Iterator[np.ndarray]:
        """Tokens of document after document, from the current position on, without end."""
        while True:
            some = False
            texts = itertools.islice(self.data.texts, self.data.skip + self.read, None)
            for tokens in encoded(texts, self.data.tokenizer, self.data.workers):
                some = True
                self.read += 1
                yield tokens
            if not some and not self.read:
                raise DataError("the streamed corpus has no document left to train on; lower holdout or give more text")
            self.epoch, self.read = self.epoch + 1, 0

    def block(self) -> Tensor:
        """The next ``T + 1`` tokens in the corpus' own order."""
        size = self.data.seq_len
        while len(self.left) < size + 1:
            self.left = np.concatenate([self.left, next(self.source).astype(np.int64)])
        found, self.left = self.left[: size + 1], self.left[size:]
        return torch.from_numpy(found.copy())

    def next(self) -> Tensor:
        """A block drawn from the buffer, which is filled up first."""
        while len(self.held) < self.data.buffer:
            self.held.append(self.block())
        place = int(np.random.default_rng([self.seed, self.drawn]).integers(len(self.held)))
        self.drawn += 1
        chosen, self.held[place] = self.held[place], self.block()
        return chosen

    def position(self) -> Position:
        """JSON data and tensors that describe the position of this reader."""
        place = {"epoch": self.epoch, "documents": self.read, "drawn": self.drawn}
        tensors = {"left": torch.from_numpy(self.left.copy())}
        return place, tensors | ({"held": torch.stack(self.held)} if self.held else {})
