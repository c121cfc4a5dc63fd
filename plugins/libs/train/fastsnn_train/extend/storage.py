"""Checkpoints of a context extension, in ``extending/``; written when the short-context loss is within its limit.

A checkpoint holds weights, optimizer states, EMA, the evaluation before the first step, and stages and log rows so far.
The batches of a stage are a function of its step, so an interrupted extension resumes exactly (with ``mode="pass"``
from empty states instead of passed ones).
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

from fastsnn_core.errors import FastSNNError
from fastsnn_train.evaluation.recall import Recall
from fastsnn_train.loop import checkpoint, snapshot
from fastsnn_train.loop.trainer import Trainer

log = logging.getLogger("fastsnn")
Proof = dict[str, Any]


class ExtensionCheckpoints:
    """Progress of an extension: finished `stages`, and the current one in `under_way`."""

    def __init__(self, model: nn.Module, trainer: Trainer, asked: dict[str, Any], resume: bool) -> None:
        self.model, self.trainer, self.asked = model, trainer, asked
        self.folder = None if trainer.out is None else trainer.out / "extending"
        self.stages: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.under_way: dict[str, Any] | None = None
        self.facts: dict[str, Any] = {}
        self.total = 0
        if self.folder is None:
            if resume:
                raise FastSNNError("an extension is resumed from the folder of its run; give the Trainer out=")
            return
        checkpoint.tidy(self.folder)
        picked = checkpoint.pick(self.folder) if resume else None
        if picked is not None:
            self.take_up(*picked)
        elif resume:
            log.warning("no extension to resume under %s; starting afresh", self.folder)
        elif checkpoint.found(self.folder):
            self.folder.rename(checkpoint.free_path(self.folder.with_name("extending-1")))

    def take_up(self, path: Any, state: dict[str, Any]) -> None:
        """Restore a checkpoint; raises `FastSNNError` if it was written with other settings."""
        if odd := [k for k, v in self.asked.items() if state["asked"].get(k) != v]:
            raise FastSNNError(
                f"{path} was begun with other settings ({', '.join(odd)}); start afresh, or ask for the same"
            )
        restore_tensors(
            self.model, self.trainer, checkpoint.read_tensors(path, snapshot.sharded_like(self.model)), path
        )
        self.stages, self.under_way, self.facts = state["stages"], state["under_way"], state["facts"]
        self.total, self.history = state["step"], checkpoint.history(path)

    def save(self, stage: dict[str, Any]) -> None:
        """Write a checkpoint of `stage` at its `kept_step`."""
        self.total += 1
        self.under_way = copy.deepcopy(stage)
        if self.folder is None:
            return
        tensors = snapshot.take(self.model, self.trainer.optimizer, self.trainer.stepper.average)
        state = {
            "step": self.total,
            "asked": self.asked,
            "stages": self.stages,
            "under_way": stage,
            "facts": self.facts,
        }
        checkpoint.save(self.folder, tensors, state, self.history, self.trainer.world, set(), self.trainer.config.keep)

    def close(self, stage: dict[str, Any]) -> None:
        """Record `stage` as finished."""
        self.stages.append(stage)
        self.under_way = None


def copy_tensors(model: nn.Module, trainer: Trainer) -> checkpoint.Tensors:
    """A copy of weights, optimizer states and EMA."""
    found = snapshot.take(model, trainer.optimizer, trainer.stepper.average)
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def restore_tensors(model: nn.Module, trainer: Trainer, tensors: dict[str, torch.Tensor], where: Any) -> None:
    """Restore weights, optimizer states and EMA; optimizer states missing in `tensors` are removed."""
    trainer.optimizer.state.clear()
    snapshot.put(model, trainer.optimizer, trainer.stepper.average, tensors, where)


def packed_proof(proof: Proof) -> Proof:
    """A proof as JSON data."""
    return proof | {"recall": {t: r if isinstance(r, str) else r.table() for t, r in proof["recall"].items()}}


def unpacked_proof(plain: Proof) -> Proof:
    """The inverse of `packed_proof`."""
    return plain | {"recall": {t: r if isinstance(r, str) else Recall.of(r) for t, r in plain["recall"].items()}}
