"""One step of training on longer contexts, in each of its ways: carry, long, pass; and steps on short sequences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError
from fastsnn_core.state import detach, nbytes
from fastsnn_train.data.token_batches import ids_of, targets_of
from fastsnn_train.loop import health
from fastsnn_train.loop.activation_sparsity import record_activations
from fastsnn_train.loop.firing_rate import watch
from fastsnn_train.loop.optim import set_rate
from fastsnn_train.loop.trainer import Trainer, TrainingError

FRESH = 8
"""One of so many sequences starts with an empty state when states are passed."""


class StageRunner:
    """Takes the steps of one stage.

    - carry: documents of the new length in chunks of the old one, state carried and gradients cut (truncated
      backpropagation through time): the memory of short sequences.
    - long: whole documents, gradients and all.
    - pass: sequences of the old length that start from the final state of another one, for corpora without long
      documents; after as many as make up the new length, and for one row in eight, an empty state.

    Every step reads about as many tokens as one of the training before. A share of the steps, evenly spread, reads
    short sequences as they were.
    """

    def __init__(
        self, model: nn.Module, trainer: Trainer, short: Any, long: Any, mode: str, short_share: float
    ) -> None:
        self.model, self.trainer, self.short, self.long = model, trainer, short, long
        self.mode, self.short_share = mode, short_share
        self.chunks = -(-long.seq_len // short.seq_len)
        self.rows = max(1, trainer.config.batch_size // self.chunks)
        self.seed = trainer.config.seed + 1  # another order than the training before
        self.passed: Any = None
        self.age: Tensor | None = None

    def take(self, step: int, rate: float) -> tuple[float, bool]:
        """Step `step` of the stage; its loss in nats per token, and whether it read short sequences."""
        stepper = self.trainer.stepper
        set_rate(stepper.optimizer, rate)
        self.model.train()
        brief = math.floor((step + 1) * self.short_share) > math.floor(step * self.short_share)
        loss = self.brief(step) if brief else getattr(self, f"{self.mode}_step")(step)
        if stepper.scaler is not None:
            stepper.scaler.unscale_(stepper.optimizer)
        _, norm = health.gradient_norms(self.model)
        if not math.isfinite(loss) or (not math.isfinite(norm) and stepper.scaler is None):
            stepper.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"step {step} towards {self.long.seq_len} tokens: the loss is {loss:g}, the gradient's norm {norm:g}. "
                "Lower lr; the weights are those before this step"
            )
        stepper.update(norm, self.trainer.step + step)
        return loss, brief

    def piece(self, tokens: Tensor, reset: Tensor | None, state: Any, share: float) -> tuple[float, Any]:
        """Gradients of ``tokens [B,T+1]`` after `state`, weighted by `share`; their loss, and the state behind them."""
        stepper, config = self.trainer.stepper, self.trainer.config
        with (
            watch(self.model, health=False, rates=config.rate_weight > 0) as seen,
            record_activations(self.model, config.l1_sites, magnitudes=config.l1 > 0, reads=False) as sparse,
        ):
            with stepper.autocast():
                logits, state = self.model(ids_of(tokens[:, :-1]), state, reset=reset, return_state=True)
            targets = targets_of(tokens[:, 1:])
            if not bool((targets >= 0).any()):  # context only: nothing to learn, but a state to carry
                return 0.0, detach(state)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
            penalty = stepper.penalty(seen, sparse, config.max_steps, loss)  # risen long ago
            total = (loss + penalty) * share
            (total if stepper.scaler is None else stepper.scaler.scale(total)).backward()
        return float(loss.detach()) * share, detach(state)

    def batch(self, data: Any, step: int, rows: int) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[rows, T+1]`` and where documents start."""
        tokens = data.batch(step, rows, self.seed).to(self.trainer.device)
        return tokens, data.resets(tokens[:, :-1])

    def brief(self, step: int) -> float:
        """Short sequences, as in the training before."""
        tokens, reset = self.batch(self.short, step, self.trainer.config.batch_size)
        return self.piece(tokens, reset, None, 1.0)[0]

    def long_step(self, step: int) -> float:
        """Whole documents."""
        tokens, reset = self.batch(self.long, step, self.rows)
        return self.piece(tokens, reset, None, 1.0)[0]

    def carry_step(self, step: int) -> float:
        """Whole documents, chunk by chunk."""
        tokens, resets = self.batch(self.long, step, self.rows)
        length, size, state, total = tokens.shape[1] - 1, self.short.seq_len, None, 0.0
        for begin in range(0, length, size):
            end = min(length, begin + size)
            reset = None if resets is None else resets[:, begin:end]
            loss, state = self.piece(tokens[:, begin : end + 1], reset, state, (end - begin) / length)
            total += loss
        return total

    def pass_step(self, step: int) -> float:
        """Short sequences behind the states that others left; documents that end inside them do not clear these."""
        tokens = self.short.batch(step, self.trainer.config.batch_size, self.seed).to(self.trainer.device)
        n = len(tokens)
        age = torch.zeros(n, dtype=torch.long) if self.age is None else self.age
        rng = np.random.default_rng([self.seed, step])
        fresh = (age >= self.chunks) | torch.from_numpy(rng.random(n) < 1 / FRESH)
        reset = torch.zeros(n, tokens.shape[1] - 1, dtype=torch.bool, device=tokens.device)
        reset[:, 0] = fresh.to(tokens.device)
        loss, state = self.piece(tokens, reset, self.passed, 1.0)
        if self.passed is not None and nbytes(state) > nbytes(self.passed):
            raise FastSNNError(
                "mode = 'pass' needs a state of constant size; softmax layers remember every token: use carry"
            )
        self.passed, self.age = state, torch.where(fresh, 0, age) + 1
        return loss


def deep_share(data: Any, old: int) -> float:
    """Share of the tokens that lie deeper than `old` tokens in their document; 1 where documents do not end."""
    tokens = getattr(data, "tokens", None)
    if tokens is None or data.end is None or not data.documents:
        return 1.0
    edges = np.concatenate([[-1], np.flatnonzero(np.asarray(tokens) == data.end), [len(tokens) - 1]])
    return float(np.maximum(0, np.diff(edges) - old).sum() / max(1, len(tokens)))
