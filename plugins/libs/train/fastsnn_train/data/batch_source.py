"""Batches of a run, from any step on: what a resumed run reads next is what the stopped one would have read.

- `Packed` corpora: a batch is a function of the step, so there is no position to keep.
- `Streamed` corpora: the position (documents read, what is left of the last one, the shuffle buffer) is kept.
- Any other iterable of token batches: read past up to the step. It draws its random numbers from a stream of its own,
  kept in the checkpoint, so that a shuffling loader shuffles the same way again. A collection is read again and again,
  epoch after epoch; an iterator ends.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_train.config import TrainConfig
from fastsnn_train.data.packing import Packed, batches
from fastsnn_train.data.streaming import Streamed
from fastsnn_train.loop.randomness import Stream

Batch = tuple[Tensor, Tensor | None]
"""Global batch: tokens ``[B, T+1]``, and where documents start ``[B, T]`` (or None)."""


class Feed:
    """``next()`` gives a batch or None at the end; ``position()`` says where it stands, ``begin`` goes there."""

    def begin(self, step: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Stand before the batch of `step`; `position` and `tensors` are those of a checkpoint, if there was one."""

    def next(self) -> Batch | None:
        """The next global batch."""
        raise NotImplementedError

    def position(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON data and tensors that `begin` needs."""
        return {}, {}

    def fingerprint(self) -> dict[str, Any]:
        """What tells this data from other data, as far as that can be had for nothing."""
        return {}


class PackedFeed(Feed):
    """Blocks of a packed corpus in a seeded order."""

    def __init__(self, data: Packed, config: TrainConfig) -> None:
        self.data, self.config, self.step = data, config, 0

    def begin(self, step: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Nothing but the step matters."""
        self.step = step

    def next(self) -> Batch:
        """The batch of this step; there is always one."""
        tokens = self.data.batch(self.step, self.config.batch_size, self.config.seed)
        self.step += 1
        return tokens, self.data.resets(tokens[:, :-1])

    def fingerprint(self) -> dict[str, Any]:
        """How many tokens, in sequences of how many, and a checksum of the first and last million."""
        tokens = self.data.tokens
        ends = (np.ascontiguousarray(part) for part in (tokens[:1_000_000], tokens[-1_000_000:]))
        return {"tokens": len(tokens), "seq_len": self.data.seq_len, "crc": [zlib.crc32(part) for part in ends]}


class StreamedFeed(Feed):
    """Blocks of a streamed corpus."""

    def __init__(self, data: Streamed, config: TrainConfig) -> None:
        self.data, self.config = data, config
        self.reader = data.reader(config.seed)

    def begin(self, step: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Go to where a checkpoint's reader stood."""
        if position:
            self.reader = self.data.reader(self.config.seed, position, tensors)

    def next(self) -> Batch:
        """A batch of shuffled blocks."""
        tokens = torch.stack([self.reader.next() for _ in range(self.config.batch_size)])
        return tokens, self.data.resets(tokens[:, :-1])

    def position(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Documents read, tokens left over, blocks held."""
        return self.reader.position()

    def fingerprint(self) -> dict[str, Any]:
        """Only how it is cut: the corpus is not read for this."""
        return {"seq_len": self.data.seq_len, "shuffle_buffer": self.data.buffer, "skip": self.data.skip}


class IterableFeed(Feed):
    """Token batches of any iterable."""

    def __init__(self, data: Iterable[Any]) -> None:
        self.data, self.random = data, Stream()
        self.start = self.random.state
        self.source: Iterator[Tensor] = self.epochs()

    def epochs(self) -> Iterator[Tensor]:
        """Epoch after epoch; one, where `data` is an iterator."""
        epoch, seen = 0, True
        while seen:
            seen = False
            sampler = getattr(self.data, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            for tokens in batches(self.data):
                seen = True
                yield tokens
            if iter(self.data) is self.data:
                return
            epoch += 1

    def begin(self, step: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Read past what was trained on, drawing what was drawn then."""
        if position:
            self.start = position["random"]
            self.random = Stream(self.start)
        for _ in range(step):
            self.next()

    def next(self) -> Batch | None:
        """The next batch, drawn from the data's own random stream."""
        with self.random.draw():
            tokens = next(self.source, None)
        return None if tokens is None else (tokens, None)

    def position(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The random state the data began with."""
        return {"random": self.start}, {}


def feed_of(data: Packed | Streamed | Iterable[Any], config: TrainConfig) -> Feed:
    """The feed for what `Trainer.fit` was given."""
    if isinstance(data, Packed):
        return PackedFeed(data, config)
    return StreamedFeed(data, config) if isinstance(data, Streamed) else IterableFeed(data)
