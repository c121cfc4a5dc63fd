"""When a network over time has decided: accuracy against steps and spikes, and leaving early by confidence.

After t of T steps the answer is that of the objective's readout of the first t outputs, and its confidence the largest
probability of the softmax of that readout. A sample that leaves at confidence p takes the first t at which its own is
at least p, else T. The decision step is the first from which the answer stays what it is at T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastsnn_console.progress import Progress
from fastsnn_core.errors import ArgumentError, FastSNNError
from fastsnn_core.probe import Record, probe
from fastsnn_core.state import tree_map
from fastsnn_train.evaluation.figures import evaluating
from fastsnn_train.samples.batches import read_samples
from fastsnn_train.samples.sample_set import SampleSet
from fastsnn_train.samples.segments import segment_outputs, takes_state, with_time
from fastsnn_train.samples.task import SampleTask

CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


class StepTally:
    """Σ |counts| of every sample at every step, over all sites; what is computed once counts at the first."""

    def __init__(self) -> None:
        self.records: list[Tensor] = []

    def add(self, name: str, record: Record) -> None:
        """One call of one site."""
        counts = record.spikes.counts
        self.records.append(counts.flatten(2).abs().sum(2) if counts.ndim > 2 else counts.abs().sum(1, keepdim=True))

    def by_step(self, batch: int, steps: int) -> Tensor:
        """``[B, T]``."""
        total = torch.zeros(batch, steps, dtype=torch.float64)
        for row in self.records:
            total[:, : row.shape[1]] += row.cpu()
        return total


def answers_by_step(task: SampleTask, out: Tensor) -> tuple[Tensor, Tensor]:
    """Answers and confidences ``[B, T]`` after each step of outputs ``[B, T, C]``."""
    read = [task.objective.read(out[:, : t + 1]).softmax(-1).max(-1) for t in range(out.shape[1])]
    return torch.stack([found.indices for found in read], 1), torch.stack([found.values for found in read], 1)


def exits(sure: np.ndarray, confidence: float) -> np.ndarray:
    """Index of the step at which each row of confidences ``[N, T]`` leaves."""
    enough = sure >= confidence
    enough[:, -1] = True
    return enough.argmax(1)


@torch.no_grad()
def decisions(
    model: nn.Module,
    samples: SampleSet,
    task: SampleTask,
    *,
    confidences: tuple[float, ...] = CONFIDENCES,
    batch: int = 256,
    quiet: bool = False,
) -> dict[str, Any]:
    """``curve``: accuracy and spikes so far after every step; ``exits``: what leaving at a confidence costs.

    Each row of ``exits`` has the accuracy, the mean step at which samples leave, and their mean spikes until then;
    ``decision_step`` is a mean, too. Errors (FastSNNError): no classification, or a network that gives one output.
    """
    if task.kind != "classification":
        raise FastSNNError(f"decisions are those of a classification; this is a {task.kind}")
    device = next(model.parameters()).device
    truth, said, sure, spent = [], [], [], []
    with evaluating(model), Progress("deciding", -(-len(samples) // batch), quiet=quiet) as progress:
        for begin in range(0, len(samples), batch):
            index = list(range(begin, min(len(samples), begin + batch)))
            x, y = (t.to(device) for t in read_samples(samples, index, task.shape, task.classes))
            tally = StepTally()
            with probe(model, tally.add):
                out = task.outputs(model, x, model)
            if out.shape[1] < 2:
                raise FastSNNError("the network gives one output for a sample, and decides when it is there")
            answered, confident = answers_by_step(task, out)
            truth.append(y.cpu().numpy())
            said.append(answered.cpu().numpy())
            sure.append(confident.cpu().numpy())
            spent.append(tally.by_step(*out.shape[:2]).cumsum(1).numpy())
            progress.step()
    labels, answers, confidence, spikes = (np.concatenate(rows) for rows in (truth, said, sure, spent))
    right, n = answers == labels[:, None], np.arange(len(labels))
    curve = [
        {"step": t + 1, "accuracy": float(right[:, t].mean()), "spikes": float(spikes[:, t].mean())}
        for t in range(right.shape[1])
    ]
    rows = []
    for p in confidences:
        at = exits(confidence, p)
        row = {"confidence": p, "accuracy": float(right[n, at].mean()), "mean_steps": float(at.mean() + 1)}
        rows.append(row | {"spikes": float(spikes[n, at].mean())})
    return {"curve": curve, "exits": rows, "decision_step": float(decided(answers).mean())}


def decided(answers: np.ndarray) -> np.ndarray:
    """First step, from 1, from which each row of ``[N, T]`` stays what it is at the end."""
    other = answers != answers[:, -1:]
    return np.where(other.any(1), other.shape[1] + 1 - other[:, ::-1].argmax(1), 1)


def streams_left(chosen: Tensor) -> Callable[[Tensor], Tensor]:
    """What takes the `chosen` streams of a tensor ``[B, …]``."""
    return lambda value: value[chosen]


@torch.no_grad()
def early_exit(model: nn.Module, x: Tensor, task: SampleTask, confidence: float = 0.9) -> tuple[Tensor, Tensor]:
    """Answers ``[B]`` and the steps taken ``[B]``: one step at a time, and a sample that is confident takes no more.

    ``x`` is ``[B, …]`` or ``[B, T, …]``. Answers and steps are those of ``decisions`` at this confidence. Errors
    (FastSNNError): a confidence that is no probability, a network that takes no state, or whose spikes stand in front
    of the layer that begins time.
    """
    if not 0 <= confidence <= 1:
        raise ArgumentError(f"confidence is a probability, got {confidence!r}")
    takes_state(model)
    with evaluating(model):
        x = with_time(model, x)
        left, state = torch.arange(len(x), device=x.device), None
        outs: Tensor | None = None
        answers, steps = (torch.zeros(len(x), dtype=torch.long, device=x.device) for _ in range(2))
        for t in range(x.shape[1]):
            out, state = segment_outputs(task, model, x[left, t : t + 1], state)
            outs = out if outs is None else torch.cat([outs, out], 1)
            sure, said = task.objective.read(outs).softmax(-1).max(-1)
            leaving = (sure >= confidence) | (t == x.shape[1] - 1)
            answers[left[leaving]], steps[left[leaving]] = said[leaving], t + 1
            stay = ~leaving
            left, outs = left[stay], outs[stay]
            if not len(left):
                break
            state = tree_map(streams_left(stay), state)
    return answers, steps
