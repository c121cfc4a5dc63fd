"""A task defines the loss, the size and the evaluation of a batch for the trainer; here language modelling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from fastsnn_modules.inputs import vocabulary_of
from fastsnn_train.config import TrainConfig
from fastsnn_train.data.batch_source import BatchSource, batch_source
from fastsnn_train.data.packing import Packed
from fastsnn_train.data.token_batches import IGNORE, ids_of, scored, targets_of
from fastsnn_train.evaluation.evaluate import evaluate

if TYPE_CHECKING:
    from torch import nn

    from fastsnn_train.loop.optimizer_step import OptimizerStep
    from fastsnn_train.loop.trainer import Trainer

Batch = tuple[Tensor, Tensor | None]


class LanguageTask:
    """Next-token cross-entropy in nats per token, of ``tokens [B, T+1]`` with document starts ``reset [B, T]``."""

    unit = "tokens"
    columns = ("tokens", "reset")

    def size(self, batch: Batch) -> int:
        """Number of predicted tokens."""
        return batch[0][:, 1:].numel()

    def weight(self, batch: Batch) -> float | None:
        """Number of targets, which the summed loss is divided by; None if every token is a target."""
        return scored(batch[0])

    def batches(self, data: Any, config: TrainConfig, model: nn.Module) -> BatchSource:
        """Batches of a corpus."""
        return batch_source(data, config, vocabulary_of(model))

    def loss(
        self, step: OptimizerStep, tokens: Tensor, reset: Tensor | None, eager: bool, in_all: float | None
    ) -> Tensor:
        """Mean cross-entropy over the targets; with `in_all` the sum divided by `in_all`."""
        logits = step.forward(ids_of(tokens[:, :-1]), reset, eager)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        targets = step.network.share(targets_of(tokens[:, 1:]))
        if in_all is None:
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        return total / in_all

    def judge(self, trainer: Trainer, held_out: Any) -> dict[str, Any]:
        """Held-out metrics for the log; ``held_out`` is the one to minimize."""
        return {"held_out": trainer.evaluate(held_out)["nats_per_token"]}

    def evaluate(self, trainer: Trainer, held_out: Packed) -> dict[str, Any]:
        """Metrics on the first `eval_sequences` held-out sequences, split over the processes if they divide evenly."""
        world = trainer.world
        n, size = min(len(held_out), trainer.config.eval_sequences), world.size
        if n % size == 0 and size > 1:
            begin, n = world.rank * (n // size) * held_out.seq_len, n // size
            held_out = held_out.part(begin, begin + n * held_out.seq_len + 1)
        with trainer.autocast():
            found = evaluate(trainer.model, held_out, max_sequences=n)
        trainer.stepper.network.rest()
        (nats,) = world.mean([found["nats_per_token"]], trainer.device)
        return found | {"nats_per_token": nats, "perplexity": math.exp(min(nats, 700.0))}
