"""One optimizer step: gradient accumulation, gradient reduction and clipping, parameter update, EMA."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import SpikeSite
from fastsnn_train.config import TrainConfig
from fastsnn_train.loop.activation_sparsity import ActivationSparsity, chosen_sites, ramp, record_activations
from fastsnn_train.loop.firing_rate import SpikeObservations, band_penalty, blend_at, blended, watch
from fastsnn_train.loop.health import gradient_norms
from fastsnn_train.loop.optim import PositiveThresholds, WeightAverage, learning_rate, optimizer, set_rate
from fastsnn_train.loop.parallel import DistributedModel, World
from fastsnn_train.loop.task import LanguageTask
from fastsnn_train.samples.segments import in_segments, segment_losses

log = logging.getLogger("fastsnn")


class NotFinite(ArithmeticError):
    """Loss or gradient norm is not finite; raised before any parameter changes."""


@attrs.frozen(eq=False)
class Outcome:
    """Result of a step: loss (nats per token), penalty (firing band, L1), gradient norms (blocks, total), spikes.

    `leaving`: some process got a signal to stop. `skipped`: fp16 gradients overflowed, so the update was skipped.
    """

    loss: float
    penalty: float
    blocks: dict[str, float]
    norm: float
    seen: SpikeObservations
    sparsity: ActivationSparsity
    leaving: bool
    skipped: bool


class OptimizerStep:
    """The objects a step updates: model, optimizer, gradient scaler and the EMA of the weights."""

    def __init__(self, model: nn.Module, config: TrainConfig, world: World) -> None:
        self.model, self.config, self.world = model, config, world
        self.task: Any = LanguageTask()
        if config.checkpointing:
            if not hasattr(model, "checkpointing"):
                raise FastSNNError(
                    f"{type(model).__name__} has no activation checkpointing (no attribute `checkpointing`)"
                )
            switch: Any = model
            switch.checkpointing = True
        if config.l1 and not chosen_sites(model, config.l1_sites):
            known = ", ".join(sorted({m.name for m in model.modules() if isinstance(m, SpikeSite) and m.name}))
            wanted = ", ".join(config.l1_sites)
            raise FastSNNError(f"l1_sites {wanted}: the model has no such spike site; it has {known or 'none'}")
        self.network = DistributedModel(model, world)
        self.optimizer = optimizer(model, config)
        self.positive = PositiveThresholds(model)
        self.average = WeightAverage(model, config.ema) if config.ema else None
        self.kind = precision(config, self.device)
        self.scaler = None
        if self.kind is torch.float16:
            if self.device.type == "cuda":
                self.scaler = torch.amp.GradScaler("cuda")
            else:
                log.warning("precision fp16 on %s runs without loss scaling, which is for CUDA", self.device.type)
        self.targets: float | None = None  # targets in the global batch; None if every token is one
        self.compiled: Callable[..., Tensor] | None = torch.compile(model, dynamic=False) if config.compile else None

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast context for the configured precision."""
        return torch.autocast(self.device.type, self.kind) if self.kind else contextlib.nullcontext()

    def forward(self, tokens: Tensor, reset: Tensor | None, eager: bool) -> Tensor:
        """Logits ``[B,T,V]``; uses the compiled model if there is one, except with `eager`, where hooks must run."""
        if self.compiled is None or eager:
            return self.network(tokens, reset)
        try:
            return self.compiled(tokens, reset=reset) if reset is not None else self.compiled(tokens)
        except Exception as error:
            logits = self.network(tokens, reset)  # an error of the model itself is raised here again
            self.compiled = None
            log.warning("torch.compile failed, going on without it: %s", (str(error) or repr(error)).splitlines()[0])
            return logits

    def loss(
        self, tokens: Tensor, reset: Tensor | None, eager: bool = True, targets_in_all: float | None = None
    ) -> Tensor:
        """The task's mean loss of a micro-batch; by default next-token cross-entropy of ``tokens [B,T+1]`` in nats.

        With `targets_in_all` it is the sum over this process's targets, divided by that number.
        """
        return self.task.loss(self, tokens, reset, eager, targets_in_all)

    def take(self, tokens: Tensor, reset: Tensor | None, step: int, *, look: bool, leaving: bool) -> Outcome:
        """Step `step` on a global batch. `look` measures spikes and blocks; `leaving` is told to every process."""
        config = self.config
        if (count := self.task.weight((tokens, reset))) == 0:
            what = self.task.unit.removesuffix("s")
            log.warning("step %d: no %s of this batch is a target of the loss; nothing is learnt from it", step, what)
        self.targets = None if count is None else (count or 1) / self.world.size
        set_rate(self.optimizer, learning_rate(step, config))
        self.model.train()
        rows = self.world.rows(tokens).to(self.device)
        marks = None if reset is None else self.world.rows(reset).to(self.device)
        blend = blend_at(step, config.spike_warmup, config.max_steps)
        with (
            blended(self.model, blend),
            watch(self.model, health=look, rates=config.rate_weight > 0) as seen,
            record_activations(self.model, config.l1_sites, magnitudes=config.l1 > 0, reads=look) as sparse,
        ):
            loss, penalty = self.backward(rows, marks, (seen, sparse), step, eager=look or blend < 1)
        self.network.meet()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        blocks, norm = gradient_norms(self.model)
        loss, penalty, some = self.world.mean([loss, penalty, float(leaving)], self.device)
        if not math.isfinite(loss) or (not math.isfinite(norm) and self.scaler is None):
            raise NotFinite(f"the loss is {loss:g}, the gradient's norm {norm:g}")
        skipped = not math.isfinite(norm)
        self.update(norm, step)
        return Outcome(loss, penalty, blocks, norm, seen, sparse, some > 0, skipped)

    def penalty(self, seen: SpikeObservations, sparse: ActivationSparsity, step: int, like: Tensor) -> Tensor:
        """Regularization terms of the last forward pass: firing-rate band penalty and L1 on activations."""
        config, penalty = self.config, like.new_zeros(())
        if seen.rates:
            penalty = penalty + float(config.rate_weight) * band_penalty(seen.rates, config.rate_low, config.rate_high)
        if sparse.magnitudes and (found := sparse.penalty(config.l1_silent)) is not None:
            penalty = penalty + float(config.l1) * ramp(step, config.l1_warmup, config.max_steps) * found
        return penalty

    def backward(
        self,
        rows: Tensor,
        marks: Tensor | None,
        watched: tuple[SpikeObservations, ActivationSparsity],
        step: int,
        eager: bool,
    ) -> tuple[float, float]:
        """Gradient accumulation over the micro-batches of this process's rows; their mean loss and penalty."""
        config = self.config
        pieces = rows.chunk(config.accumulate)
        mean_of = () if self.targets is None else (self.targets,)
        cuts = [None] * len(pieces) if marks is None else marks.chunk(config.accumulate)
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for i, (piece, cut) in enumerate(zip(pieces, cuts)):
            share = len(piece) / len(rows)
            with self.network.piece(last=i + 1 == len(pieces)):
                for loss, of_time in self.losses(piece, cut, eager, *mean_of):
                    penalty = self.penalty(*watched, step, loss) * of_time
                    # with context tokens masked, micro-batches differ in targets: losses are sums over a common count
                    total = (loss + penalty) * share if self.targets is None else loss + penalty * share
                    (total if self.scaler is None else self.scaler.scale(total)).backward()
                    found = torch.stack([loss.detach(), penalty.detach()]).double()
                    totals += found * share if self.targets is None else found * found.new_tensor([1.0, share])
                    del loss, penalty, total  # frees the graph of the segment
        return tuple(totals.tolist())

    def losses(
        self, piece: Tensor, cut: Tensor | None, eager: bool, *in_all: float | None
    ) -> Iterator[tuple[Tensor, float]]:
        """``(loss, share of time)`` of a micro-batch: one pair, or one per segment where time is cut (TBPTT)."""
        if not in_segments(self.config):
            with self.autocast():
                loss = self.loss(piece, cut, eager, *in_all)
            yield loss, 1.0
        elif isinstance(self.task, LanguageTask):
            raise FastSNNError(
                "checkpoint_time, tbptt and online cut samples over time; a language model has `checkpointing`, and "
                "seq_len says how far its gradients go"
            )
        else:
            yield from segment_losses(self.task, self, piece, cut, in_all[0] if in_all else None)

    @torch.no_grad()
    def update(self, norm: float, step: int) -> None:
        """Clip gradients, step the optimizer, keep thresholds positive, update the EMA."""
        clip = self.config.clip
        if clip and clip < norm < math.inf:
            for p in self.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(clip / (norm + 1e-6))
        before = self.positive.before()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.positive.after(before)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step + 1)


def precision(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The autocast dtype, None for float32. ``auto`` is bf16 on a GPU that supports it, else float32."""
    wanted = config.precision
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]
