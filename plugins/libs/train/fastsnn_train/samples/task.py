"""Classification, regression and sequence labelling on the trainer: loss of a batch, figures of held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core import Objective
from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import SpikeSite
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_train.config import TrainConfig
from fastsnn_train.data.batch_source import BatchSource
from fastsnn_train.samples.sample_set import IGNORE, SampleSet

if TYPE_CHECKING:
    from fastsnn_train.loop.optimizer_step import OptimizerStep
    from fastsnn_train.loop.trainer import Trainer

Batch = tuple[Tensor, Any]
KINDS = ("classification", "regression", "labelling")


@attrs.frozen(eq=False)
class SampleTask:
    """Inputs ``[B, …]`` and targets: classes ``[B]``, numbers ``[B,C]``, or a class for every step ``[B,T]``.

    `weights` ``[C]`` weigh the loss of each class; a batch's loss is the weighted mean over its samples (over
    its steps, where they are labelled; -100 counts for nothing).
    """

    kind: str
    objective: Objective
    classes: int = 0
    weights: Tensor | None = None
    shape: tuple[int, ...] | None = None
    unit = "samples"
    columns = ("inputs", "targets")

    def size(self, batch: Batch) -> int:
        """Samples."""
        return len(batch[0])

    def weight(self, batch: Batch) -> float | None:
        """Sum of the weights of a batch; None where every sample weighs one."""
        if self.kind != "labelling" and self.weights is None:
            return None
        return float(self.weighing(batch[1].flatten()).sum())

    def weighing(self, targets: Tensor) -> Tensor:
        """What each of ``targets [N]`` weighs."""
        real = (targets != IGNORE).float()
        return real if self.weights is None else real * self.weights.to(targets.device)[targets.clamp_min(0)]

    def batches(self, data: Any, config: TrainConfig, model: nn.Module) -> BatchSource:
        """Batches of a `SampleData`."""
        if config.parallel == "sequence":
            raise FastSNNError("parallel = 'sequence' cuts tokens; samples are shared by 'ddp' or 'fsdp'")
        return data.batches(config)

    def loss(self, step: OptimizerStep, x: Tensor, y: Any, eager: bool, in_all: float | None) -> Tensor:
        """Weighted mean of the samples' losses; with `in_all` their sum, divided by that."""
        out = self.outputs(step.model, x, lambda z: step.forward(z, None, eager or self.objective.counts))
        rows, weights = self.rows(out, y)
        if weights is None:
            return rows.mean()
        return (rows * weights).sum() / (weights.sum() if in_all is None else in_all)

    def rows(self, out: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss of every sample (or labelled step), and what it weighs."""
        if self.kind == "labelling":
            if out.shape[1] != y.shape[1]:
                raise FastSNNError(
                    f"the network gives {out.shape[1]} steps, the labels have {y.shape[1]}; a layer that ends time "
                    "(mean) has no place in front of labels for every step"
                )
            flat = y.flatten()
            return self.objective.loss(out.flatten(0, 1)[:, None], flat.clamp_min(0)), self.weighing(flat)
        return self.objective.loss(out, y), None if self.weights is None else self.weighing(y)

    def answers(self, out: Tensor) -> Tensor:
        """Classes ``[B]`` (or ``[B,T]``), or values ``[B,C]``."""
        if self.kind == "labelling":
            return self.objective.read(out.flatten(0, 1)[:, None]).argmax(1).view(out.shape[:2])
        scores = self.objective.read(out)
        return scores if self.kind == "regression" else scores.argmax(1)

    def outputs(self, model: nn.Module, x: Tensor, call: Callable[[Tensor], Any]) -> Tensor:
        """``[B,T,C]`` in float32: what the network gives at every step; counts where the objective takes them."""
        with last_spikes(model, wanted=self.objective.counts) as seen:
            out = call(x)
        if isinstance(out, tuple):
            out = out[0]
        if seen and seen[-1].counts.numel() == out.numel():
            out = seen[-1].counts.reshape(out.shape)
        if out.ndim not in (2, 3):
            raise FastSNNError(
                f"the network gives {list(out.shape)} for {len(x)} samples; expected [B, C] or [B, T, C] (end it with "
                "flatten and linear)"
            )
        out = out if out.ndim == 3 else out[:, None]
        return out.float() if out.dtype.itemsize < 4 else out

    def judge(self, trainer: Trainer, held_out: SampleSet) -> dict[str, Any]:
        """Columns of the log about held-out samples; ``held_out`` is the loss."""
        found = trainer.evaluate(held_out)
        return {"held_out": found.pop("loss")} | found

    def evaluate(self, trainer: Trainer, held_out: SampleSet) -> dict[str, Any]:
        """Figures of all held-out samples."""
        from fastsnn_train.samples.figures import sample_figures

        with trainer.autocast():
            found = sample_figures(
                trainer.model, held_out, self, batch=4 * trainer.config.batch_size, quiet=trainer.quiet
            )
        trainer.stepper.network.rest()
        return found


@contextmanager
def last_spikes(model: nn.Module, wanted: bool) -> Iterator[list[SpikeTensor]]:
    """The spikes of the last site that ran in the block."""
    seen: list[SpikeTensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        spikes = output[0] if isinstance(output, tuple) else output
        seen[:] = [spikes] if isinstance(spikes, SpikeTensor) else []

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, SpikeSite)] if wanted else []
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def output_width(model: nn.Module, x: Tensor, objective: Objective) -> int:
    """C: how many classes or numbers the network gives, tried on one input."""
    task = SampleTask("classification", objective)
    training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                out = task.outputs(model, x.to(device), model)
            except (RuntimeError, TypeError, IndexError) as error:
                if isinstance(error, FastSNNError):
                    raise
                shape = list(x.shape[1:])
                raise FastSNNError(f"the network does not run on a sample of shape {shape}: {error}") from error
            return objective.read(out).shape[-1]
    finally:
        model.train(training)
