"""Longer context: truncated backpropagation through time on long documents, state carried, gradients cut.

A fixed sliding window never sees an unseen distance and the linear state never an unseen position; what fails on long
inputs is that states leave the distribution they were trained in. Reading documents of the new length in chunks of the
old one, with the state carried over and detached, mends that with the memory of short-sequence training (Buitrago &
Gu 2025, arXiv 2507.02782; toy figures in docs/).
"""

from __future__ import annotations

import time
from typing import Any

import attrs
import torch
from torch import nn

from fastsnn_core.state import detach
from fastsnn_train.evaluate import by_position
from fastsnn_train.optim import learning_rate
from fastsnn_train.packing import Data, Packed
from fastsnn_train.progress import Progress
from fastsnn_train.trainer import Trainer


def extend_context(
    model: nn.Module,
    trainer: Trainer,
    *,
    new_seq_len: int,
    max_steps: int = 100,
    data: Data | None = None,
    lr: float | None = None,
    quiet: bool | None = None,
) -> dict[str, Any]:
    """Train `model` on to `new_seq_len` tokens of context; returns the proof: loss by position, before and after.

    Each step reads `batch_size` documents (at least one) of the new length in chunks of the old one. The optimiser and
    its state are the trainer's; the rate is a tenth of its peak unless given. Milestones go into the model's meta.
    """
    data = data or trainer.data
    if data is None:
        raise ValueError(
            "extend_context needs the trainer's corpus; train with FastSNN.fit on a dataset, or give data="
        )
    old = data.train.seq_len
    if new_seq_len <= old:
        raise ValueError(f"the model was trained at {old} tokens; new_seq_len must be longer, got {new_seq_len}")
    quiet = trainer.quiet if quiet is None else quiet
    long, probe_on = data.train.with_length(new_seq_len), long_enough(data, new_seq_len)
    edges = [0, old // 2, *(old << i for i in range(30) if old << i < new_seq_len), new_seq_len]
    before = by_position(model, probe_on, edges, 4)
    config = attrs.evolve(trainer.config, max_steps=max_steps, lr=lr or trainer.config.lr / 10)
    chunks, began, history = -(-new_seq_len // old), time.perf_counter(), []
    rows = max(1, trainer.config.batch_size // chunks)
    model.train()
    with Progress(max_steps, label=f"extending {old} → {new_seq_len}", quiet=quiet) as progress:
        for step in range(max_steps):
            tokens = long.batch(step, rows, trainer.config.seed + 1).to(trainer.device)
            for group in trainer.optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            loss = document_step(model, trainer, tokens, long, old)
            history.append({"step": step + 1, "loss": loss})
            progress.update(step + 1, history[-1])
            if (step + 1) % trainer.config.log_every == 0:
                progress.log(history[-1])
    model.eval()
    after = by_position(model, probe_on, edges, 4)
    proof = {
        "what": "extend_context",
        "from": old,
        "to": new_seq_len,
        "steps": max_steps,
        "seconds": round(time.perf_counter() - began, 1),
        "before": before,
        "after": after,
    }
    meta = dict(getattr(model, "meta", {}))
    model.meta = meta | {"milestones": [*meta.get("milestones", []), proof]}  # type: ignore[assignment]
    return proof | {"history": history}


def document_step(model: nn.Module, trainer: Trainer, tokens: torch.Tensor, data: Packed, size: int) -> float:
    """One optimiser step over whole documents ``[B,T+1]``, chunk by chunk: state carried, gradients cut."""
    state, total = None, 0.0
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    resets = data.resets(inputs)
    for begin in range(0, inputs.shape[1], size):
        piece = slice(begin, begin + size)
        reset = None if resets is None else resets[:, piece]
        with trainer.autocast():
            logits, state = model(inputs[:, piece], state, reset=reset, return_state=True)
        share = targets[:, piece].shape[1] / targets.shape[1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets[:, piece].flatten()) * share
        loss.backward()
        total += float(loss.detach())
        state = detach(state)
    if trainer.config.clip:
        nn.utils.clip_grad_norm_(model.parameters(), trainer.config.clip)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return total


def long_enough(data: Data, length: int) -> Packed:
    """Held-out tokens in blocks of the new length, or the training tokens where too few are held out."""
    held = data.held_out
    source = held if held is not None and len(held.tokens) > length else data.train
    return source.with_length(length)
