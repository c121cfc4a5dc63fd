"""Training steps of context extension in the modes carry, long and pass, and steps on short sequences."""

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
"""In mode pass, one of this many sequences starts from an empty state."""


class StageRunner:
    """Runs the training steps of one stage.

    - carry: documents of the new length in chunks of the old one, state carried over and gradients cut (truncated
      backpropagation through time), with the memory of short sequences.
    - long: full backpropagation through whole documents.
    - pass: sequences of the old length that start from the final state of another one, for corpora without long
      documents; the state is reset once it has seen the new length, and at random for one row in eight.

    A step uses about as many tokens as in the original training. A share of the steps, evenly spread, uses short
    sequences as in the original training.
    """

    def __init__(
        self, model: nn.Module, trainer: Trainer, short: Any, long: Any, mode: str, short_share: float
    ) -> None:
        self.model, self.trainer, self.short, self.long = model, trainer, short, long
        self.mode, self.short_share = mode, short_share
        self.chunks = -(-long.seq_len // short.seq_len)
        self.rows = max(1, trainer.config.batch_size // self.chunks)
        self.seed = trainer.config.seed + 1  # another order than in the original training
        self.passed: Any = None
        self.age: Tensor | None = None

    def take(self, step: int, rate: float) -> tuple[float, bool]:
        """Run one step; returns its loss in nats per token and whether it used short sequences."""
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
        """Backward pass of ``tokens [B,T+1]`` from `state`; returns the loss times `share`, and the detached state."""
        stepper, config = self.trainer.stepper, self.trainer.config
        with (
            watch(self.model, health=False, rates=config.rate_weight > 0) as seen,
            record_activations(self.model, config.l1_sites, magnitudes=config.l1 > 0, reads=False) as sparse,
        ):
            with stepper.autocast():
                logits, state = self.model(ids_of(tokens[:, :-1]), state, reset=reset, return_state=True)
            targets = targets_of(tokens[:, 1:])
            if not bool((targets >= 0).any()):  # no targets: only the state is updated
                return 0.0, detach(state)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
            penalty = stepper.penalty(seen, sparse, config.max_steps, loss)  # warm-up of the penalty is over
            total = (loss + penalty) * share
            (total if stepper.scaler is None else stepper.scaler.scale(total)).backward()
        return float(loss.detach()) * share, detach(state)

    def batch(self, data: Any, step: int, rows: int) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[rows, T+1]`` and document starts ``[rows, T]``."""
        tokens = data.batch(step, rows, self.seed).to(self.trainer.device)
        return tokens, data.resets(tokens[:, :-1])

    def brief(self, step: int) -> float:
        """A step on short sequences, as in the original training."""
        tokens, reset = self.batch(self.short, step, self.trainer.config.batch_size)
        return self.piece(tokens, reset, None, 1.0)[0]

    def long_step(self, step: int) -> float:
        """Mode long: full backpropagation through sequences of the new length."""
        tokens, reset = self.batch(self.long, step, self.rows)
        return self.piece(tokens, reset, None, 1.0)[0]

    def carry_step(self, step: int) -> float:
        """Mode carry: sequences of the new length, chunk by chunk, with the state carried over."""
        tokens, resets = self.batch(self.long, step, self.rows)
        length, size, state, total = tokens.shape[1] - 1, self.short.seq_len, None, 0.0
        for begin in range(0, length, size):
            end = min(length, begin + size)
            reset = None if resets is None else resets[:, begin:end]
            loss, state = self.piece(tokens[:, begin : end + 1], reset, state, (end - begin) / length)
            total += loss
        return total

    def pass_step(self, step: int) -> float:
        """Mode pass: short sequences from the final states of others; document ends do not reset the state."""
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
    """Fraction of tokens more than `old` tokens into their document; 1 if documents have no end token."""
    tokens = getattr(data, "tokens", None)
    if tokens is None or data.end is None or not data.documents:
        return 1.0
    edges = np.concatenate([[-1], np.flatnonzero(np.asarray(tokens) == data.end), [len(tokens) - 1]])
    return float(np.maximum(0, np.diff(edges) - old).sum() / max(1, len(tokens)))
