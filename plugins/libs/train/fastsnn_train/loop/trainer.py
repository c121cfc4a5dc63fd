"""The training loop: trains a model on batches, logs to `history`, and resumes from checkpoints bit for bit."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_console import contention
from fastsnn_console.gradients import gradients_on
from fastsnn_console.typed import typed
from fastsnn_core import Run
from fastsnn_core.errors import FastSNNError
from fastsnn_core.files import beside
from fastsnn_core.site import sites
from fastsnn_train.config import TrainConfig, section_table
from fastsnn_train.data.batch_source import BatchSource
from fastsnn_train.data.documents import DataError
from fastsnn_train.data.packing import Data, Packed
from fastsnn_train.data.streaming import Streamed
from fastsnn_train.loop import checkpoint, health, parallel, snapshot
from fastsnn_train.loop.callbacks import InterruptGuard, TrackerCallbacks
from fastsnn_train.loop.firing_rate import Rescue
from fastsnn_train.loop.kept_memory import freed_memory_kept
from fastsnn_train.loop.optim import learning_rate, with_learning_rate
from fastsnn_train.loop.optimizer_step import NotFinite, OptimizerStep, Outcome
from fastsnn_train.loop.progress import TrainingProgress
from fastsnn_train.loop.resume import save_checkpoint, stand_at_checkpoint
from fastsnn_train.loop.task import LanguageTask
from fastsnn_train.samples.prepare import SampleData

log = logging.getLogger("fastsnn")


class TrainingError(FastSNNError, RuntimeError):
    """Training stopped at a non-finite loss or gradient: names the step, the module and the saved batch."""


class Trainer:
    """Trains a language model on token batches, or any network on labelled samples (`SampleData`).

    ``Trainer(model, TrainConfig(max_steps=10)).fit(batches)`` with any iterable of token ids ``[B, T]``, or a `Data`,
    `Packed` or `Streamed` corpus. With `out`, checkpoints go to ``out/checkpoints`` and ``fit(…, resume=True)`` resumes
    from the newest one, bit for bit on a CPU. `history` has a row per ``log_every`` steps and per evaluation.
    """

    @typed
    def __init__(
        self, model: nn.Module, config: TrainConfig | None = None, *, out: str | Path | None = None, quiet: bool = False
    ) -> None:
        self.model, self.config = model, with_learning_rate(config or TrainConfig(), model)
        self.out = None if out is None else Path(out)
        self.world = parallel.join_group(self.config.parallel)
        self.quiet = quiet or not self.world.leader
        self.stepper = OptimizerStep(model, self.config, self.world)
        self.rescue = Rescue(self.config.rescue)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.data: Data | SampleData | None = None
        self.batches: BatchSource | None = None
        self.kept = (-1, 0)  # step and history length of the newest checkpoint
        self.warned: set[str] = set()
        self.last_health: dict[str, health.SiteHealth] = {}

    def __repr__(self) -> str:
        loss = next((f", loss {row['loss']:.3f}" for row in reversed(self.history) if "loss" in row), "")
        out = f", out={str(self.out)!r}" if self.out is not None else ""
        return f"Trainer({type(self.model).__name__}, step {self.step} of {self.config.max_steps}{loss}{out})"

    @property
    def task(self) -> Any:
        """Defines loss and evaluation of a batch: a `LanguageTask` or a `SampleTask`."""
        return self.stepper.task

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.stepper.device

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The AdamW optimizer."""
        return self.stepper.optimizer

    @property
    def folder(self) -> Path | None:
        """The checkpoint folder, ``out/checkpoints``; None without `out`."""
        return None if self.out is None else self.out / "checkpoints"

    @property
    def best(self) -> dict[str, Any] | None:
        """The `history` row with the lowest held-out loss; None before the first evaluation."""
        rows = [row for row in self.history if "held_out" in row]
        return min(rows, key=lambda row: row["held_out"]) if rows else None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast context for the configured precision."""
        return self.stepper.autocast()

    # -- a run ---------------------------------------------------------------------------------------------------

    @gradients_on()
    def fit(
        self,
        data: Data | SampleData | Packed | Streamed | Iterable[Any],
        held_out: Any = None,
        *,
        resume: bool = False,
    ) -> Trainer:
        """Train until ``config.max_steps``, the end of the data, or a stop by a tracker; returns the trainer.

        On SIGINT or SIGTERM it finishes the step, saves a checkpoint and raises `KeyboardInterrupt`.
        """
        if isinstance(data, Data | SampleData):
            self.data, held_out = data, held_out or data.held_out
        self.stepper.task = data.task if isinstance(data, SampleData) else LanguageTask()
        corpus = data.train if isinstance(data, Data) else data
        batches = self.batches = self.task.batches(corpus, self.config, self.model)
        stand_at_checkpoint(self, batches, resume)
        run = Run(self.model, self.out, section_table(self.config), self.config.max_steps, self.history)
        trackers = self.config.trackers if self.world.leader else ()
        on_processor = isinstance(data, SampleData) and self.device.type == "cpu"
        with (
            freed_memory_kept() if on_processor else contextlib.nullcontext(),
            InterruptGuard() as guard,
            TrainingProgress(self.config.max_steps, self.step, quiet=self.quiet) as progress,
            TrackerCallbacks(trackers, run) as callbacks,
        ):
            try:
                left = self.loop(batches, held_out, run, guard, progress, callbacks)
            except DataError as error:
                saved = self.save(callbacks) if self.step else None
                raise DataError(f"{error}{f' (step {self.step} is kept in {saved})' if saved else ''}") from None
            if left:
                self.save(callbacks)
                raise KeyboardInterrupt(f"{guard.asked or 'a signal to another process'} at step {self.step}")
            if run.stopping:
                progress.say(f"stopped at step {self.step}: {run.stopping}")
            if held_out is not None and self.step and "held_out" not in (self.history or [{}])[-1]:
                self.record_row({"step": self.step} | self.judge(held_out), progress, callbacks)
            self.save(callbacks)
        self.finish(held_out)
        return self

    def loop(
        self,
        batches: BatchSource,
        held_out: Any,
        run: Run,
        guard: InterruptGuard,
        progress: TrainingProgress,
        callbacks: TrackerCallbacks,
    ) -> bool:
        """Run training steps; True if all processes stopped early because one of them got a signal."""
        config, seen, clock, leave = self.config, 0, time.perf_counter(), False
        while self.step < config.max_steps and not run.stopping and not leave:
            batch = batches.next()
            if batch is None and not self.step:
                raise DataError("the data gave no batch: nothing to train on")
            if batch is None:
                progress.say(f"the data ended after {self.step} steps of {config.max_steps}")
                break
            contention.tick()
            last = self.step + 1 == config.max_steps
            due = last or (self.step + 1) % config.log_every == 0
            outcome = self.train_step(*batch, look=due, leaving=bool(guard.asked))
            seen += self.task.size(batch)
            row: dict[str, Any] = {"step": self.step, "loss": outcome.loss}
            if due:
                row |= self.describe(outcome, batch, progress)
                row |= {f"{self.task.unit}_per_second": seen / max(1e-9, time.perf_counter() - clock)}
            judged = held_out is not None and (last or bool(config.eval_every and self.step % config.eval_every == 0))
            if judged and held_out is not None:
                row |= self.judge(held_out)
            if due or judged:
                self.record_row(row, progress, callbacks)
                run.stopping = self.world.first(run.stopping)
                seen, clock = 0, time.perf_counter()
            progress.update(self.step, row)
            leave = outcome.leaving if self.world.size > 1 else bool(guard.asked)
            if not last and not leave and self.is_due(judged):
                self.save(callbacks)
        return leave

    def is_due(self, judged: bool) -> bool:
        """Is a checkpoint due: every `checkpoint_every` steps, and at a new best evaluation?"""
        if self.out is None:
            return False
        every = self.config.checkpoint_every
        return bool(every and self.step % every == 0) or (judged and (self.best or {}).get("step") == self.step)

    def train_step(
        self, tokens: Tensor, reset: Tensor | None = None, *, look: bool = False, leaving: bool = False
    ) -> Outcome:
        """One optimizer step on ``tokens [B, T+1]``; raises `TrainingError` if loss or gradient is not finite."""
        try:
            outcome = self.stepper.take(tokens, reset, self.step, look=look, leaving=leaving)
        except NotFinite as error:
            raise self.stop(str(error), tokens, reset) from None
        self.step += 1
        return outcome

    def own_rows(self, tokens: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """This process's rows of a global batch, on its device."""
        marks = None if reset is None else self.world.rows(reset).to(self.device)
        return self.world.rows(tokens).to(self.device), marks

    def stop(self, what: str, tokens: Tensor, reset: Tensor | None) -> TrainingError:
        """Save the offending batch and find the module; returns the error to raise."""
        rows, marks = self.own_rows(tokens, reset)
        with self.autocast():
            where = health.first_bad(self.model, lambda: self.stepper.loss(rows, marks))
        self.stepper.network.rest()
        self.optimizer.zero_grad(set_to_none=True)
        saved = ""
        if self.out is not None and self.world.leader:
            from safetensors.torch import save_file

            path = self.out / f"bad-batch-step-{self.step}.safetensors"
            with beside(path) as scratch:
                columns = zip(self.task.columns, (tokens, reset))
                save_file({name: t.cpu().contiguous() for name, t in columns if t is not None}, scratch)
            saved = f"; the batch is in {path}"
        return TrainingError(
            f"step {self.step}: {what}; {where}{saved}. "
            "Lower lr, or clip harder; the weights are those before this step"
        )

    def describe(
        self, outcome: Outcome, batch: tuple[Tensor, Tensor | None], progress: TrainingProgress
    ) -> dict[str, Any]:
        """Metrics of a step for the log; warns once per spike site or block, and recalibrates sites due for rescue."""
        row: dict[str, Any] = {"lr": learning_rate(self.step - 1, self.config)}
        self.last_health = found = health.shared(outcome.seen.means(), self.world, self.device)
        row |= health.firing(found) | {"gradient_norm": outcome.norm, "gradient": outcome.blocks}
        row |= outcome.sparsity.row()
        if self.config.rate_weight or self.config.l1:
            row["rate_penalty" if self.config.rate_weight else "l1_penalty"] = outcome.penalty
        if outcome.skipped:
            row["skipped"] = 1
        neurons = {name: site.neuron for name, site in sites(self.model).items() if site.neuron is not None}
        says = health.complaints(found, neurons) | health.gradient_complaints(outcome.blocks, self.model)
        news = [text for name, text in says.items() if name not in self.warned]
        self.warned |= says.keys()
        if ready := self.rescue.due(found, self.model):
            rows, marks = self.own_rows(*batch)
            news += self.rescue.help(ready, self.model, lambda: self.stepper.loss(rows, marks), self.world.average_)
            self.stepper.network.rest()
            self.warned -= set(ready)
        for text in news if self.world.leader else ():
            log.warning("step %d: %s", self.step, text)
        return row | ({"flags": sorted(says)} if says else {})

    def judge(self, held_out: Any) -> dict[str, float]:
        """Held-out loss and the task's other metrics; with EMA also the held-out loss of the averaged weights."""
        row = self.task.judge(self, held_out)
        if self.stepper.average is not None:
            self.stepper.average.swap()
            try:
                row["held_out_ema"] = self.task.judge(self, held_out)["held_out"]
            finally:
                self.stepper.average.swap()
        return row

    def evaluate(self, held_out: Any) -> dict[str, Any]:
        """The task's metrics on held-out data."""
        return self.task.evaluate(self, held_out)

    def record_row(self, row: dict[str, Any], progress: TrainingProgress, callbacks: TrackerCallbacks) -> None:
        """Append a row to `history` and pass it to the trackers and the progress display."""
        self.history.append(row)
        callbacks.log(row)
        progress.log(row)

    def finish(self, held_out: Any) -> None:
        """Gather shards, load the weights that ``config.bundle`` names, record the run in `meta`, set eval mode."""
        if self.config.bundle == "ema" and self.stepper.average is not None:
            self.stepper.average.swap()
        best = self.best
        if self.config.bundle == "best" and self.folder is not None and best is not None and best["step"] != self.step:
            path = self.folder / checkpoint.step_folder(best["step"])
            self.world.lead(lambda: checkpoint.verify(path))
            snapshot.put_model(self.model, checkpoint.read_tensors(path, snapshot.sharded_like(self.model)), path)
        self.model = parallel.whole_model(self.model)
        meta = dict(getattr(self.model, "meta", {}))
        last = {k: v for row in self.history[-1:] for k, v in row.items() if isinstance(v, int | float)}
        done = {"what": "fit", "steps": self.step, "config": section_table(self.config), "last": last}
        if self.config.bundle == "best" and best is not None:
            done["weights_of_step"] = best["step"]
        if isinstance(self.data, SampleData):
            done |= self.data.milestone()
        elif self.data is not None:
            done |= {"data": self.data.note, "seq_len": self.data.train.seq_len}
        meta["milestones"] = [*meta.get("milestones", []), done]
        self.model.meta = meta  # type: ignore[assignment]
        self.model.eval()

    def save(self, callbacks: TrackerCallbacks | None = None) -> Path | None:
        """Write a checkpoint under ``out/checkpoints``; None without `out` or if this step is already saved."""
        if self.folder is None or self.kept == (self.step, len(self.history)):
            return None
        path = save_checkpoint(self, self.folder)
        if callbacks is not None:
            callbacks.saved(path)
        return path
