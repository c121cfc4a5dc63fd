"""Batches of a run, from any step: a resumed run reads the batches that the stopped run would have read.

- `Packed` corpora: a batch is a function of the step, so there is no position to keep.
- `Streamed` corpora: the position (documents read, what is left of the last one, the shuffle buffer) is kept.
- Any other iterable of token batches: read past up to the step. It draws its random numbers from a stream of its own,
  kept in the checkpoint, so that a shuffling loader shuffles the same way again. A collection is read again and again,
  epoch after epoch; an iterator ends.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.errors import ArgumentError
from fastsnn_modules.inputs import check_token_ids
from fastsnn_train.config import TrainConfig
from fastsnn_train.data.packing import Packed
from fastsnn_train.data.streaming import Streamed
from fastsnn_train.data.token_batches import Batch, batches, columns_of, ids_of
from fastsnn_train.loop.randomness import RandomStream


class BatchSource:
    """``next()`` gives a global batch, None at the end; ``position()`` is the state to resume from, ``begin``
    restores it.
    """

    def begin(self, step: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Seek to the batch of `step`; `position` and `tensors` come from a checkpoint, if there is one."""

    def next(self) -> Batch | None:
        """The next global batch."""
        raise NotImplementedError

    def position(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON data and tensors from which `begin` resumes."""
        return {}, {}

    def fingerprint(self) -> dict[str, Any]:
        """Identifies the data set, as far as that is possible without reading it."""
        return {}


class PackedBatches(BatchSource):
    """Blocks of a packed corpus in a seeded order."""

    def __init__(self, data: Packed, config: TrainConfig, vocab_size: int | None) -> None:
        self.data, self.config, self.vocab_size, self.step = data, config, vocab_size, 0

    def begin(self, step: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Only the step is needed."""
        self.step = step

    def next(self) -> Batch:
        """The batch of this step; there is no end."""
        tokens = self.data.batch(self.step, self.config.batch_size, self.config.seed)
        check_token_ids(ids_of(tokens), self.vocab_size, f"the batch of step {self.step}")
        self.step += 1
        return tokens, self.data.resets(tokens[:, :-1])

    def fingerprint(self) -> dict[str, Any]:
        """How many tokens, in sequences of how many, and a checksum of the first and last million."""
        tokens = self.data.tokens
        ends = (np.ascontiguousarray(part).data for part in (tokens[:1_000_000], tokens[-1_000_000:]))
        return {"tokens": len(tokens), "seq_len": self.data.seq_len, "crc": [zlib.crc32(part) for part in ends]}


class StreamedBatches(BatchSource):
    """Blocks of a streamed corpus."""

    def __init__(self, data: Streamed, config: TrainConfig, vocab_size: int | None) -> None:
        self.data, self.config, self.vocab_size = data, config, vocab_size
        self.reader = data.reader(config.seed)

    def begin(self, step: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Restore the reader of a checkpoint."""
        if position:
            self.reader = self.data.reader(self.config.seed, position, tensors)

    def next(self) -> Batch:
        """A batch of shuffled blocks."""
        tokens = torch.stack([self.reader.next() for _ in range(self.config.batch_size)])
        check_token_ids(ids_of(tokens), self.vocab_size, "a batch of the stream")
        return tokens, self.data.resets(tokens[:, :-1])

    def position(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Documents read, remaining tokens, buffered blocks."""
        return self.reader.position()

    def fingerprint(self) -> dict[str, Any]:
        """Only how the corpus is cut into sequences: it is not read for this."""
        return {"seq_len": self.data.seq_len, "shuffle_buffer": self.data.buffer, "skip": self.data.skip}


class IterableBatches(BatchSource):
    """Token batches of any iterable; sequences of an indexable collection are drawn in a seeded order."""

    def __init__(self, data: Iterable[Any], config: TrainConfig, vocab_size: int | None) -> None:
        self.data, self.config, self.vocab_size, self.random = data, config, vocab_size, RandomStream()
        self.initial = self.random.state
        self.sequences = is_sequences(data)
        self.source: Iterator[Batch] = self.epochs()

    def epochs(self) -> Iterator[Batch]:
        """Epoch after epoch; one, where `data` is an iterator."""
        epoch, seen = 0, True
        while seen:
            seen = False
            sampler: Any = getattr(self.data, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            order: Any = None
            if self.sequences:
                n = len(self.data)  # type: ignore[arg-type]
                order = np.random.default_rng([self.config.seed, epoch]).permutation(n).tolist()
            elif not hasattr(self.data, "__iter__"):
                order = range(len(self.data))  # type: ignore[arg-type]
            for batch in batches(self.data, self.config.batch_size, self.vocab_size, order):
                seen = True
                yield batch
            if order is None and iter(self.data) is self.data:
                return
            epoch += 1

    def begin(self, step: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Skip the batches that were trained on, with the same random draws."""
        if position:
            self.initial = position["random"]
            self.random = RandomStream(self.initial)
        for _ in range(step):
            self.next()

    def next(self) -> Batch | None:
        """The next batch, drawn from the data's own random stream."""
        with self.random.draw():
            return next(self.source, None)

    def position(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The random state the data began with."""
        return {"random": self.initial}, {}


def is_sequences(data: Any) -> bool:
    """Is it an indexable collection (a torch Dataset, a list, a table) whose items are one sequence each?"""
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or hasattr(data, "keys") or not len(data):
        return False
    return columns_of(data[0], "item 0")["ids"].ndim == 1


def batch_source(
    data: Packed | Streamed | Iterable[Any], config: TrainConfig, vocab_size: int | None = None
) -> BatchSource:
    """Batches of what `Trainer.fit` was given; ids must be below `vocab_size`."""
    if isinstance(data, Packed):
        return PackedBatches(data, config, vocab_size)
    if isinstance(data, Streamed):
        return StreamedBatches(data, config, vocab_size)
    if not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        given = "None" if data is None else f"a {type(data).__name__}"
        raise ArgumentError(f"cannot train on {given}; give a corpus, or an iterable of token batches [B, T]")
    try:
        empty = isinstance(data, Sized) and not len(data)
    except TypeError:  # a DataLoader over an IterableDataset has a __len__ that does not know
        empty = False
    if empty:
        raise ArgumentError("cannot train on an empty collection of batches")
    return IterableBatches(data, config, vocab_size)
