"""Saves a `Trainer` to a checkpoint and restores it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsnn_train.config import BESIDE_QUALITY, EARLIER, TrainConfig, section_table
from fastsnn_train.data.batch_source import BatchSource
from fastsnn_train.loop import checkpoint, randomness, snapshot

if TYPE_CHECKING:
    from fastsnn_train.loop.trainer import Trainer

log = logging.getLogger("fastsnn")


def save_checkpoint(trainer: Trainer, folder: Path) -> Path:
    """Write a checkpoint of the trainer's current step; returns its folder."""
    position, tensors = trainer.batches.position() if trainer.batches else ({}, {})
    scaler = trainer.stepper.scaler
    state = {
        "step": trainer.step,
        "config": section_table(trainer.config),
        "model": model_table(trainer),
        "data": trainer.batches.fingerprint() if trainer.batches else {},
        "streak": trainer.rescue.streak,
        "scaler": scaler.state_dict() if scaler else {},
        "feed": position,
        "random": trainer.world.gather(randomness.capture()),
    }
    rows = {f"feed/{name}": t for name, t in tensors.items()}
    rows |= snapshot.take(trainer.model, trainer.optimizer, trainer.stepper.average)
    spare = {trainer.best["step"]} if trainer.best else set()
    path = checkpoint.save(folder, rows, state, trainer.history, trainer.world, spare, trainer.config.keep)
    trainer.kept = (trainer.step, len(trainer.history))
    return path


def stand_at_checkpoint(trainer: Trainer, batches: BatchSource, resume: bool) -> None:
    """Restore trainer, data position and RNG state from the newest intact checkpoint, or start from the beginning."""
    folder = trainer.folder
    picked = trainer.world.lead(lambda: newest_checkpoint(trainer, folder, resume)) if folder is not None else None
    if picked is None:  # a shuffling loader must use the same order in every process
        position, tensors = batches.position() if trainer.world.size > 1 else ({}, {})
        batches.begin(trainer.step, trainer.world.first(position), tensors)
        return
    path, state = picked
    tensors = checkpoint.read_tensors(path, snapshot.sharded_like(trainer.model))
    snapshot.put(trainer.model, trainer.optimizer, trainer.stepper.average, tensors, path)
    trainer.step, trainer.history = state["step"], checkpoint.history(path)
    trainer.kept = (trainer.step, len(trainer.history))
    trainer.rescue.streak = dict(state["streak"])
    if trainer.stepper.scaler is not None and state["scaler"]:
        trainer.stepper.scaler.load_state_dict(state["scaler"])
    mine = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith("feed/")}
    batches.begin(trainer.step, state["feed"], mine)
    randomness.restore(state["random"][min(trainer.world.rank, len(state["random"]) - 1)])


def newest_checkpoint(trainer: Trainer, folder: Path, resume: bool) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to resume from and its state; without `resume`, checkpoints of an earlier run are moved aside."""
    checkpoint.tidy(folder)
    if not resume:
        if checkpoint.found(folder) and not trainer.step:
            aside = checkpoint.free_path(folder.with_name(f"{folder.name}-1"))
            folder.rename(aside)
            log.warning("%s held an earlier run's checkpoints; they are now in %s", folder, aside.name)
        return None
    picked = checkpoint.pick(folder)
    if picked is None:
        log.warning("nothing to resume under %s; starting afresh", folder)
        return None
    path, state = picked
    if changed := changed_settings(state["config"], trainer.config):
        log.warning("resuming %s with other settings: %s", path.name, ", ".join(changed))
    now = trainer.batches.fingerprint() if trainer.batches is not None else state["data"]
    if state["data"] != now:
        log.warning("resuming %s on other data: %s then, %s now", path.name, state["data"], now)
    if odd := [k for k, v in model_table(trainer).items() if state["model"].get(k) != v]:
        log.warning("resuming %s with another model specification: %s", path.name, ", ".join(odd))
    return picked


def changed_settings(then: dict[str, Any], config: TrainConfig) -> list[str]:
    """Names of settings that differ from the checkpoint's and affect the result of training."""
    now, then = section_table(config), EARLIER | then
    return [k for k, v in now.items() if k in then and then[k] != v and k not in BESIDE_QUALITY]


def model_table(trainer: Trainer) -> dict[str, Any]:
    """The model's spec as plain data; empty for a model without one."""
    spec = getattr(trainer.model, "spec", None)
    return {} if spec is None else section_table(spec)
