"""The training loop: batches in, a trained model out, everything it did in `history`, resumable bit for bit."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.files import beside
from fastsnn_core.probe import probe
from fastsnn_core.site import sites
from fastsnn_train import checkpoint, health
from fastsnn_train.config import TrainConfig
from fastsnn_train.evaluate import evaluate
from fastsnn_train.optim import learning_rate, optimizer
from fastsnn_train.packing import Data, Packed, batches
from fastsnn_train.progress import Progress

log = logging.getLogger("fastsnn")
IGNORE = -100


class TrainingError(RuntimeError):
    """Training cannot go on: the message says at which step, where, and what was saved."""


class Trainer:
    """Trains a language model on token batches.

    ``Trainer(model, TrainConfig(max_steps=10)).fit(batches)`` with any iterable of token ids ``[B, T]``, or a `Data` or
    `Packed` corpus. With `out`, checkpoints go to ``out/checkpoints`` and ``fit(…, resume=True)`` goes on from the last
    one, bit for bit on a CPU.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig | None = None, *, out: str | Path | None = None, quiet: bool = False
    ) -> None:
        self.model, self.config = model, config or TrainConfig()
        self.out = None if out is None else Path(out)
        self.quiet = quiet
        self.optimizer = optimizer(model, self.config)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.data: Data | None = None
        self.warned: set[str] = set()
        self.last_health: dict[str, health.SiteHealth] = {}

    # -- one step ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of the configuration: auto is bf16 on a GPU that has it, else float32."""
        kind, wanted = self.device.type, self.config.precision
        if wanted == "auto":
            wanted = "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if wanted == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(kind, torch.bfloat16 if wanted == "bf16" else torch.float16)

    def loss(self, tokens: Tensor, reset: Tensor | None) -> Tensor:
        """Mean next-token cross-entropy in nats of ``tokens [B,T+1]``."""
        logits = self.model(tokens[:, :-1], reset=reset) if reset is not None else self.model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), ignore_index=IGNORE)

    def train_step(self, tokens: Tensor, reset: Tensor | None) -> float:
        """One optimiser step; returns the loss in nats per token."""
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        pieces = tokens.chunk(self.config.accumulate)
        resets = [None] * len(pieces) if reset is None else reset.chunk(self.config.accumulate)
        total = 0.0
        for piece, mark in zip(pieces, resets):
            with self.autocast():
                loss = self.loss(piece, mark)
            if not bool(torch.isfinite(loss)):
                self.stop(loss, tokens, reset)
            share = piece.shape[0] / tokens.shape[0]
            (loss * share).backward()
            total += float(loss.detach()) * share
        if self.config.clip:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
            if not bool(torch.isfinite(norm)):
                self.stop(norm, tokens, reset)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def stop(self, value: Tensor, tokens: Tensor, reset: Tensor | None) -> None:
        """A loss or gradient that is no number: save the batch, name the layer, raise."""
        where = health.first_bad(self.model, lambda: self.loss(tokens, reset))
        saved = ""
        if self.out is not None:
            from safetensors.torch import save_file

            path = self.out / f"bad-batch-step-{self.step}.safetensors"
            with beside(path) as scratch:
                save_file({"tokens": tokens.cpu()}, scratch)
            saved = f"; the batch is in {path}"
        self.optimizer.zero_grad(set_to_none=True)
        raise TrainingError(
            f"step {self.step}: loss or gradient is {float(value.detach())}; first bad output: {where}{saved}. "
            "Lower lr, or clip harder; the weights are those before this step"
        )

    # -- a run ---------------------------------------------------------------------------------------------------

    def fit(
        self, data: Data | Packed | Iterable[Any], held_out: Packed | None = None, *, resume: bool = False
    ) -> Trainer:
        """Train until ``config.max_steps``; returns the trainer, whose `history` has a row per `log_every` steps."""
        if isinstance(data, Data):
            self.data, held_out = data, held_out or data.held_out
            data = data.train
        if resume:
            self.resume()
        stream = self.stream(data)
        packed = data if isinstance(data, Packed) else None
        seen, clock = 0, time.perf_counter()
        with Progress(self.config.max_steps, self.step, quiet=self.quiet) as progress:
            while self.step < self.config.max_steps:
                tokens = next(stream, None)
                if tokens is None:
                    progress.say(f"the data ended after {self.step} steps of {self.config.max_steps}")
                    break
                tokens = tokens.to(self.device)
                reset = packed.resets(tokens[:, :-1]) if packed is not None else None
                due = (self.step + 1) % self.config.log_every == 0 or self.step + 1 == self.config.max_steps
                with probe(self.model) if due else contextlib.nullcontext() as trace:
                    loss = self.train_step(tokens, reset)
                seen += tokens[:, 1:].numel()
                row: dict[str, Any] = {"step": self.step, "loss": loss}
                if due:
                    row |= {"lr": learning_rate(self.step - 1, self.config)}
                    row |= {"tokens_per_second": seen / max(1e-9, time.perf_counter() - clock)}
                    row |= self.look(trace or {}, progress)
                every = self.config.eval_every
                if held_out is not None and every and self.step % every == 0:
                    row["held_out"] = self.evaluate(held_out)["nats_per_token"]
                if due or "held_out" in row:
                    self.history.append(row)
                    self.write(row)
                    progress.log(row)
                    seen, clock = 0, time.perf_counter()
                progress.update(self.step, row)
                if (
                    self.out is not None
                    and self.config.checkpoint_every
                    and self.step % self.config.checkpoint_every == 0
                ):
                    self.save()
        if held_out is not None and self.step and (not self.history or "held_out" not in self.history[-1]):
            row = {"step": self.step, "held_out": self.evaluate(held_out)["nats_per_token"]}
            if self.history and self.history[-1]["step"] == self.step:
                self.history[-1] |= row
            else:
                self.history.append(row)
            self.write(row)
        if self.out is not None:
            self.save()
        self.milestone(held_out)
        self.model.eval()
        return self

    def stream(self, data: Packed | Iterable[Any]) -> Iterator[Tensor]:
        """Batches from the current step on."""
        if isinstance(data, Packed):
            return (
                data.batch(i, self.config.batch_size, self.config.seed) for i in range(self.step, self.config.max_steps)
            )
        found = batches(data)
        for _ in range(self.step):  # a plain iterable has no position: what was trained on is read past
            next(found, None)
        return found

    def look(self, trace: Any, progress: Progress) -> dict[str, float]:
        """Firing of this step's spikes; complains once per site that went silent or saturated."""
        self.last_health = found = health.site_health(trace)
        modules = {name: site.neuron for name, site in sites(self.model).items() if site.neuron is not None}
        for name, text in health.complaints(found, modules).items():
            if name not in self.warned:
                self.warned.add(name)
                log.warning("step %d: %s", self.step, text)
                progress.say(f"step {self.step}: {text}") if progress.terminal else None
        return health.firing(found)

    def evaluate(self, held_out: Packed) -> dict[str, Any]:
        """Held-out figures on the first `eval_sequences` sequences."""
        with self.autocast():
            return evaluate(self.model, held_out, max_sequences=self.config.eval_sequences)

    def milestone(self, held_out: Packed | None) -> None:
        """Write what was done into the model's meta: bundles carry it."""
        meta = dict(getattr(self.model, "meta", {}))
        last = {k: v for row in self.history[-1:] for k, v in row.items() if isinstance(v, int | float)}
        done = {"what": "fit", "steps": self.step, "config": attrs.asdict(self.config), "last": last}
        if self.data is not None:
            done |= {"data": self.data.note, "seq_len": self.data.train.seq_len}
        meta["milestones"] = [*meta.get("milestones", []), done]
        self.model.meta = meta  # type: ignore[assignment]

    # -- files ---------------------------------------------------------------------------------------------------

    def write(self, row: dict[str, Any]) -> None:
        """Append a row to ``out/log.jsonl``."""
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def save(self) -> Path:
        """Write a checkpoint of this step under ``out/checkpoints``."""
        if self.out is None:
            raise ValueError("this trainer has no `out` folder to write checkpoints to")
        state = {"step": self.step, "config": attrs.asdict(self.config), "history": self.history}
        return checkpoint.save(self.out / "checkpoints", self.model, self.optimizer, state)

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False where there is none."""
        folder = None if self.out is None else self.out / "checkpoints"
        known = checkpoint.found(folder) if folder is not None else []
        if not known:
            log.warning("nothing to resume under %s; starting afresh", folder)
            return False
        state = checkpoint.load(known[-1], self.model, self.optimizer)
        changed = [k for k, v in state["config"].items() if k not in ("max_steps",) and getattr(self.config, k, v) != v]
        if changed:
            log.warning("resuming %s with other settings: %s", known[-1].name, ", ".join(changed))
        self.step, self.history = state["step"], state["history"]
        return True
