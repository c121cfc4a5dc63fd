"""Held-out metrics of a packed corpus, and loss by position."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from fastsnn_core.probe import probe
from fastsnn_train.data.packing import Packed
from fastsnn_train.data.token_batches import ids_of, targets_of
from fastsnn_train.evaluation.figures import (
    SpikeTotals,
    cross_entropy,
    evaluating,
    nats,
    perplexity_figures,
    piece_length,
    rows_at_once,
    standard_error,
)
from fastsnn_train.evaluation.perplexity import EvaluationError, evaluate_text


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Packed, *, max_sequences: int | None = None, batch: int = 8, spikes: bool = True
) -> dict[str, Any]:
    """Perplexity on the first `max_sequences` blocks of a packed corpus; spike statistics of the first batch only."""
    device = next(model.parameters()).device
    tally = SpikeTotals()
    totals, counts = [], []
    n = len(data) if max_sequences is None else min(len(data), max_sequences)
    batch = rows_at_once(model, batch, data.seq_len)
    with evaluating(model):
        for begin in range(0, n, batch):
            tokens = torch.stack([data.block(i) for i in range(begin, min(n, begin + batch))]).to(device)
            reset = data.resets(tokens[:, :-1])
            if spikes and begin == 0:
                with probe(model, tally.add_record):
                    losses = nats(model, tokens, reset)
            else:
                losses = nats(model, tokens, reset)
            totals += losses.double().sum(1).tolist()
            counts += (targets_of(tokens[:, 1:]) >= 0).sum(1).tolist()
    return perplexity_figures(totals, counts) | tally.figures()


@torch.no_grad()
def position_nats(model: nn.Module, data: Packed, max_sequences: int = 16, chunk: int = 2048) -> np.ndarray:
    """Loss in nats ``[n, T]`` of the first blocks, computed in chunks with the state carried over: constant memory.

    Tokens without a loss are NaN.
    """
    device = next(model.parameters()).device
    rows = []
    chunk = min(chunk, piece_length(model, 1))
    with evaluating(model):
        for i in range(min(len(data), max_sequences)):
            tokens = data.block(i)[None].to(device)
            inputs, targets, state, found = tokens[:, :-1], targets_of(tokens[:, 1:]), None, []
            resets = data.resets(inputs)
            for begin in range(0, inputs.shape[1], chunk):
                piece = slice(begin, begin + chunk)
                reset = None if resets is None else resets[:, piece]
                logits, state = model(ids_of(inputs[:, piece]), state, reset=reset, return_state=True)
                found.append(cross_entropy(logits, targets[:, piece])[0])
            row = torch.cat(found).cpu().numpy()
            rows.append(np.where(targets[0].cpu().numpy() >= 0, row, np.nan))
    return np.stack(rows)


def by_position(model: nn.Module, data: Packed, edges: list[int], max_sequences: int = 16) -> list[dict[str, Any]]:
    """Mean nats per token in buckets of position ``[edge_i, edge_{i+1})``."""
    return buckets(position_nats(model, data, max_sequences), edges)


def buckets(table: np.ndarray, edges: list[int]) -> list[dict[str, Any]]:
    """Means of a loss table ``[n, T]`` in buckets of position; buckets without a scored token are left out."""
    found = []
    for low, high in itertools.pairwise(edges):
        piece = table[:, low:high]
        piece = piece[~np.isnan(piece)]
        if piece.size:
            mean = float(piece.mean())
            row = {"from": low, "to": min(high, table.shape[1]), "nats": mean, "perplexity": math.exp(min(mean, 700.0))}
            found.append(row | {"tokens": int(piece.size)})
    return found


__all__ = [
    "EvaluationError",
    "SpikeTotals",
    "buckets",
    "by_position",
    "evaluate",
    "evaluate_text",
    "evaluating",
    "nats",
    "position_nats",
    "standard_error",
]
