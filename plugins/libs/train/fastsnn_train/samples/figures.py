"""Figures of a network on labelled samples: accuracy, confusion, F1, errors; spikes per inference, silent fraction."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fastsnn_console.progress import Progress
from fastsnn_core.probe import Record, probe
from fastsnn_train.evaluation.figures import evaluating
from fastsnn_train.samples.batches import read_samples
from fastsnn_train.samples.sample_set import IGNORE, SampleSet
from fastsnn_train.samples.task import SampleTask

SHOWN = 100
"""Classes up to which a confusion is written down."""


class SpikeTally:
    """Adds up spikes and silence over batches."""

    def __init__(self) -> None:
        self.spikes = self.silent = self.channels = 0.0

    def add(self, name: str, record: Record) -> None:
        """One call of one site."""
        counts = record.spikes.counts
        self.spikes += float(counts.abs().sum(dtype=torch.float64))
        self.silent += float((counts == 0).sum())
        self.channels += counts.numel()

    def figures(self, samples: int) -> dict[str, float]:
        """Sum of |counts| per sample over all sites and steps, and the share of silent channel-steps."""
        if not self.channels:
            return {}
        return {"spikes_per_inference": self.spikes / samples, "silent_fraction": self.silent / self.channels}


@torch.no_grad()
def sample_figures(
    model: nn.Module, samples: SampleSet, task: SampleTask, *, batch: int = 256, quiet: bool = False
) -> dict[str, Any]:
    """Mean loss and what it stands for, over all of `samples`."""
    device = next(model.parameters()).device
    loss, weight, wanted, given, tally = 0.0, 0.0, [], [], SpikeTally()
    with evaluating(model), Progress("evaluating", -(-len(samples) // batch), quiet=quiet) as progress:
        for begin in range(0, len(samples), batch):
            index = list(range(begin, min(len(samples), begin + batch)))
            x, y = (t.to(device) for t in read_samples(samples, index, task.shape, task.classes))
            with probe(model, tally.add):
                out = task.outputs(model, x, model)
            rows, weights = task.rows(out, y)
            weights = torch.ones_like(rows) if weights is None else weights
            loss += float((rows * weights).sum(dtype=torch.float64))
            weight += float(weights.sum(dtype=torch.float64))
            wanted.append(y.cpu().numpy())
            given.append(task.answers(out).cpu().numpy())
            progress.step()
    found: dict[str, Any] = {"loss": loss / max(weight, 1e-12)}
    truth, answers = np.concatenate(wanted), np.concatenate(given)
    more = errors(truth, answers) if task.kind == "regression" else agreement(truth, answers, task.classes)
    return found | more | tally.figures(len(samples)) | {"inferences": len(samples)}


def agreement(truth: np.ndarray, answers: np.ndarray, classes: int) -> dict[str, Any]:
    """Accuracy, macro F1 (over classes that occur), and the confusion: row the truth, column the answer."""
    real = truth != IGNORE
    truth, answers = truth[real], answers[real]
    table = np.bincount(truth * classes + answers, minlength=classes * classes).reshape(classes, classes)
    right, rows, columns = np.diag(table), table.sum(1), table.sum(0)
    seen = rows + columns > 0
    f1 = 2 * right[seen] / (rows + columns)[seen]
    found: dict[str, Any] = {
        "accuracy": float(right.sum() / max(1, table.sum())),
        "f1": float(f1.mean()) if f1.size else 0.0,
    }
    return found | ({"confusion": table.tolist()} if classes <= SHOWN else {})


def errors(truth: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Root mean squared error, mean absolute error, and R² (share of the variance that is explained)."""
    off = answers.astype(np.float64) - truth
    spread = float(((truth - truth.mean(0)) ** 2).sum())
    found = {"rmse": float(np.sqrt((off**2).mean())), "mae": float(np.abs(off).mean())}
    return found | ({"r2": 1 - float((off**2).sum()) / spread} if spread else {})
