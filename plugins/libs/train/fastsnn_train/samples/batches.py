"""Batches of samples in a seeded order: a batch is a function of the step, so a resumed run reads on to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_train.config import TrainConfig
from fastsnn_train.data.batch_source import BatchSource
from fastsnn_train.data.token_batches import Batch
from fastsnn_train.samples.labels import check_labels
from fastsnn_train.samples.sample_set import SampleSet, refuse_odd
from fastsnn_train.samples.shapes import fitted
from fastsnn_train.samples.transforms import Transforms


class SampleBatches(BatchSource):
    """Every sample once an epoch; the last batch of an epoch is filled from the next one."""

    def __init__(
        self,
        samples: SampleSet,
        config: TrainConfig,
        shape: tuple[int, ...] | None,
        classes: int,
        transforms: Transforms | None = None,
    ) -> None:
        self.samples, self.config, self.shape, self.classes = samples, config, shape, classes
        self.transforms, self.step = transforms or Transforms(), 0
        self.orders: dict[int, np.ndarray] = {}

    def begin(self, step: int, position: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Only the step is needed."""
        self.step = step

    def order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch."""
        if epoch not in self.orders:
            order = np.random.default_rng([self.config.seed, 1, epoch]).permutation(len(self.samples))
            self.orders = {e: o for e, o in self.orders.items() if e == epoch - 1} | {epoch: order}
        return self.orders[epoch]

    def next(self) -> Batch:
        """The batch of this step; there is no end."""
        n, size = len(self.samples), self.config.batch_size
        places = np.arange(self.step * size, (self.step + 1) * size)
        index = [int(self.order(int(p // n))[p % n]) for p in places]
        x, y = read_samples(self.samples, index, self.shape, self.classes)
        draw = np.random.default_rng([self.config.seed, 2, self.step])
        self.step += 1
        return self.transforms.augmented(x, draw), y

    def fingerprint(self) -> dict[str, Any]:
        """Of the samples."""
        return self.samples.fingerprint()


def read_samples(
    samples: SampleSet, index: list[int], shape: tuple[int, ...] | None, classes: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of some samples, checked: shapes, numbers, labels (`classes`; 0: numbers)."""
    x, y = samples.batch(index)
    if callable(samples.inputs):
        refuse_odd(x.numpy(), lambda n: samples.name(index[n]))
    if samples.targets is None:
        table = y.numpy()
        if classes:
            check_labels(table, classes, lambda n: samples.name(index[n]))
        elif y.is_floating_point():
            refuse_odd(table, lambda n: f"{samples.name(index[n])}, target")
    x = fitted(x, shape, samples.name(index[0]))
    return x, y.long() if classes else y.to(torch.float32)
