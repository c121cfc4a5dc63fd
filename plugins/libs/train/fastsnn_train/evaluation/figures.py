"""What an evaluation reports: perplexity with its standard error, and sums over spikes, with little memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import Model
from fastsnn_core.moved import renamed
from fastsnn_core.probe import Record, Trace
from fastsnn_modules.inputs import vocabulary_of
from fastsnn_train.data.token_batches import IGNORE, ids_of, targets_of

LOGITS = 1 << 25
"""Logits held at once (128 MB in float32): fewer windows are read together, and longer ones in pieces."""
LEAST = 64
SLICE = 1 << 23
"""Logits whose log-probabilities are taken at once."""


class SpikeTotals:
    """Adds up what the spiking sites of many batches did."""

    def __init__(self) -> None:
        self.channels = self.silent = self.spikes = self.counts = 0.0
        self.largest = 0

    def add(self, trace: Trace) -> None:
        """One batch."""
        for name, record in trace.items():
            self.add_record(name, record)

    def add_record(self, name: str, record: Record) -> None:
        """One call of one site; for ``probe(model, tally.add_record)``."""
        found, n = record.spikes.sparsity(), record.spikes.numel()
        self.channels += n
        self.silent += n * found.silent_fraction
        self.spikes += n * found.spikes_per_channel
        self.counts += n * found.mean_count
        self.largest = max(self.largest, found.largest)

    def figures(self) -> dict[str, float]:
        """Channel-weighted means; spikes are the binary digits of the counts, `steps` holds the largest of them."""
        if not self.channels:
            names = ("silent_fraction", "spikes_per_channel", "slot_sparsity", "steps", "mean_count")
            return dict.fromkeys(names, 0) | {"silent_fraction": 0.0, "mean_count": 0.0}
        steps = max(1, self.largest.bit_length())
        spikes = self.spikes / self.channels
        return {
            "silent_fraction": self.silent / self.channels,
            "spikes_per_channel": spikes,
            "slot_sparsity": 1.0 - spikes / steps,
            "steps": steps,
            "mean_count": self.counts / self.channels,
            "largest_count": self.largest,
        }


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode while the block runs, and as it was afterwards, whatever happens."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def standard_error(totals: Sequence[float], counts: Sequence[int]) -> float | None:
    """Standard error of a mean over tokens, from sums and token counts per window; None for fewer than two windows.

    Windows, not tokens, are assumed independent: ``sqrt(W / (W - 1) · Σ (L_i - m n_i)²) / Σ n_i``, the error of a
    ratio of sums. Perplexity ``exp(m)`` has about ``exp(m)`` times this error.
    """
    n, windows = sum(counts), len(totals)
    if windows < 2 or not n:
        return None
    mean = sum(totals) / n
    squares = math.fsum((total - mean * count) ** 2 for total, count in zip(totals, counts))
    return math.sqrt(windows / (windows - 1) * squares) / n


def perplexity_figures(totals: Sequence[float], counts: Sequence[int]) -> dict[str, Any]:
    """``perplexity = exp(nats per token)`` with its standard error, from sums and numbers of tokens by window."""
    tokens = sum(counts)
    mean = math.fsum(totals) / max(1, tokens)
    error, value = standard_error(totals, counts), math.exp(min(mean, 700.0))
    return {
        "perplexity": value,
        "perplexity_error": None if error is None else value * error,
        "nats_per_token": mean,
        "standard_error": error,
        "tokens": tokens,
        "windows": len(totals),
    }


@torch.no_grad()
def nats(model: nn.Module, tokens: Tensor, reset: Tensor | None = None) -> Tensor:
    """Cross-entropy ``[B,T]`` of the predicted tokens of ``tokens [B,T+1]``; 0 for tokens without a loss.

    If the logits would take more than 128 MB, a model with state is run in chunks.
    """
    ids, targets = ids_of(tokens[:, :-1]), targets_of(tokens[:, 1:])
    length, piece = ids.shape[1], piece_length(model, len(tokens))
    if piece >= length:
        return cross_entropy(model(ids, reset=reset) if reset is not None else model(ids), targets)
    found, state = [], None
    for begin in range(0, length, piece):
        part = slice(begin, begin + piece)
        marks = None if reset is None else reset[:, part]
        logits, state = model(ids[:, part], state, reset=marks, return_state=True)
        found.append(cross_entropy(logits, targets[:, part]))
    return torch.cat(found, 1)


def rows_at_once(model: nn.Module, most: int, length: int) -> int:
    """Batch size for sequences of `length` tokens: at most `most`, at least one."""
    return max(1, min(most, LOGITS // max(1, length * (vocabulary_of(model) or 1))))


def piece_length(model: nn.Module, rows: int) -> int:
    """Chunk length in tokens for `rows` sequences: at least 64, for speed."""
    if not isinstance(getattr(model, "spec", None), Model):
        return 1 << 62  # the model does not declare that it carries a state
    return max(LEAST, LOGITS // (max(1, rows) * (vocabulary_of(model) or 1)))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats ``[B,T]`` of logits ``[B,T,V]``, slice by slice, so that no second table of that size is made."""
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    rows = max(1, SLICE // flat.shape[1])
    found = [
        F.cross_entropy(part.float(), aim, reduction="none", ignore_index=IGNORE)
        for part, aim in zip(flat.split(rows), wanted.split(rows))
    ]
    return torch.cat(found).view(targets.shape)


__getattr__ = renamed(__name__, {"Tally": "SpikeTotals"})
