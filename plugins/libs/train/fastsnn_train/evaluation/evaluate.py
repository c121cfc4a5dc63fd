"""Perplexity and sparsity of a language model on text: in windows read afresh, or as one stream; by position."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError
from fastsnn_core.probe import Trace, probe
from fastsnn_text import tokenizer_of
from fastsnn_train.data.packing import Packed


class Tally:
    """Adds up what the spiking sites of many batches did."""

    def __init__(self) -> None:
        self.channels = self.silent = self.spikes = self.counts = 0.0
        self.largest = 0

    def add(self, trace: Trace) -> None:
        """One batch."""
        for record in trace.values():
            found, n = record.spikes.sparsity(), record.spikes.numel()
            self.channels += n
            self.silent += n * found.silent_fraction
            self.spikes += n * found.spikes_per_channel
            self.counts += n * found.mean_count
            self.largest = max(self.largest, found.largest)

    def figures(self) -> dict[str, float]:
        """Channel-weighted means; spikes are the binary digits of the counts, `steps` holds the largest of them."""
        if not self.channels:
            return {
                "silent_fraction": 0.0,
                "spikes_per_channel": 0.0,
                "slot_sparsity": 0.0,
                "steps": 0,
                "mean_count": 0.0,
            }
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


@torch.no_grad()
def nats(model: nn.Module, tokens: Tensor, reset: Tensor | None = None) -> Tensor:
    """Cross-entropy of each predicted token ``[B,T]`` of ``tokens [B,T+1]``."""
    logits = model(tokens[:, :-1], reset=reset) if reset is not None else model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none").view(
        len(tokens), -1
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Packed, *, max_sequences: int | None = None, batch: int = 8, spikes: bool = True
) -> dict[str, Any]:
    """Held-out figures over (the first `max_sequences`) blocks of a packed corpus."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    tally, total, tokens_seen = Tally(), 0.0, 0
    n = len(data) if max_sequences is None else min(len(data), max_sequences)
    for begin in range(0, n, batch):
        tokens = torch.stack([data.block(i) for i in range(begin, min(n, begin + batch))]).to(device)
        reset = data.resets(tokens[:, :-1])
        if spikes and begin == 0:
            with probe(model) as trace:
                losses = nats(model, tokens, reset)
            tally.add(trace)
        else:
            losses = nats(model, tokens, reset)
        total += float(losses.double().sum())
        tokens_seen += losses.numel()
    model.train(training)
    return figures(total, tokens_seen) | tally.figures()


def figures(total: float, tokens: int) -> dict[str, Any]:
    """``perplexity = exp(nats per token)``."""
    mean = total / max(1, tokens)
    return {"perplexity": math.exp(min(mean, 700.0)), "nats_per_token": mean, "tokens": tokens}


def evaluate_text(
    model: nn.Module,
    text: str,
    *,
    seq_len: int = 512,
    start: bool = False,
    stride: int | None = None,
    carry: bool = False,
    batch: int = 8,
) -> dict[str, Any]:
    """Perplexity and bits per byte of `text` in windows of `seq_len` tokens, read independently.

    Without `stride` windows do not overlap, and the first token of each is not scored; with `start` each window begins
    with the tokenizer's start token and all its other tokens are scored. With `stride` < seq_len windows overlap and
    only the last `stride` tokens of each (all of the first) are scored. With `carry` the state goes on from window to
    window: one stream, of which all tokens but the first are scored. Every spiking site is measured on every window.
    """
    tokenizer, device = tokenizer_of(model), next(model.parameters()).device
    ids = torch.tensor(tokenizer.encode(text))
    if start and tokenizer.start is None:
        raise FastSNNError("this tokenizer has no start token")
    if len(ids) < 2:
        raise FastSNNError(f"the text has {len(ids)} tokens; at least 2 are needed")
    if stride is not None and not 0 < stride <= seq_len:
        raise FastSNNError(f"stride must be in 1 … seq_len ({seq_len}), got {stride}")
    if carry and stride is not None:
        raise FastSNNError("carry reads every token once, with all before it in the state; it has no stride")
    training = model.training
    model.eval()
    if carry:
        first = [] if not start else [tokenizer.start]
        found = stream(model, torch.cat([torch.tensor(first, dtype=ids.dtype), ids]), seq_len, device)
        text_bytes = len(tokenizer.decode((ids if start else ids[1:]).tolist()).encode("utf-8"))
    else:
        found, text_bytes = windowed(model, tokenizer, ids, seq_len, tokenizer.start if start else None, stride, batch)
    model.train(training)
    total, scored, n, tally = found
    bits = {"bits_per_byte": total / math.log(2) / max(1, text_bytes)}
    return figures(total, scored) | bits | {"seq_len": seq_len, "windows": n} | tally.figures()


def stream(model: nn.Module, ids: Tensor, size: int, device: torch.device) -> tuple[float, int, int, Tally]:
    """Nats, tokens, pieces and spikes of one stream, read in pieces with the state carried."""
    tally, total, state, pieces = Tally(), 0.0, None, 0
    for begin in range(0, len(ids) - 1, size):
        tokens = ids[begin : begin + size + 1][None].to(device)
        with probe(model) as trace, torch.no_grad():
            logits, state = model(tokens[:, :-1], state, return_state=True)
        tally.add(trace)
        total += float(F.cross_entropy(logits[0].float(), tokens[0, 1:], reduction="none").double().sum())
        pieces += 1
    return total, len(ids) - 1, pieces, tally


def windowed(
    model: nn.Module, tokenizer: Any, ids: Tensor, seq_len: int, start: int | None, stride: int | None, batch: int
) -> tuple[tuple[float, int, int, Tally], int]:
    """Nats, tokens, windows and spikes of windows read afresh; and how many bytes of text were scored."""
    device = next(model.parameters()).device
    windows, skip = cut(ids, seq_len - 1 if start is not None else seq_len, stride)
    tally, total, scored, text_bytes = Tally(), 0.0, 0, 0
    for begin in range(0, len(windows), batch):
        for group in by_length(windows[begin : begin + batch]):
            tokens = torch.stack(group)
            if start is not None:
                tokens = torch.cat([torch.full((len(tokens), 1), start), tokens], 1)
            with probe(model) as trace:
                losses = nats(model, tokens.to(device)).cpu()
            tally.add(trace)
            for row, window in zip(losses, group):
                first = skip[id(window)]
                total += float(row[first:].double().sum())
                scored += len(row) - first
                kept = window[first:] if start is not None else window[first + 1 :]
                text_bytes += len(tokenizer.decode(kept.tolist()).encode("utf-8"))
    return (total, scored, len(windows), tally), text_bytes


def cut(ids: Tensor, body: int, stride: int | None) -> tuple[list[Tensor], dict[int, int]]:
    """Windows of `body` tokens, and how many leading predictions of each are not scored (by identity)."""
    windows, skip = [], {}
    for begin in range(0, max(1, len(ids) - 1), stride or body):
        window = ids[begin : begin + body]
        if len(window) < 2:
            break
        windows.append(window)
        skip[id(window)] = max(0, len(window) - 1 - stride) if stride and begin else 0
        if stride and begin + body >= len(ids):
            break
    return windows, skip


def by_length(rows: list[Tensor]) -> list[list[Tensor]]:
    """Rows grouped by length: only the last window is shorter."""
    lengths = sorted({len(r) for r in rows}, reverse=True)
    return [[r for r in rows if len(r) == n] for n in lengths]


@torch.no_grad()
def position_nats(model: nn.Module, data: Packed, max_sequences: int = 16, chunk: int = 2048) -> np.ndarray:
    """Nats ``[n, T]`` of the first blocks of a corpus, read in chunks with the state carried: memory does not grow."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    rows = []
    for i in range(min(len(data), max_sequences)):
        tokens = data.block(i)[None].to(device)
        inputs, targets, state, found = tokens[:, :-1], tokens[0, 1:], None, []
        resets = data.resets(inputs)
        for begin in range(0, inputs.shape[1], chunk):
            piece = slice(begin, begin + chunk)
            reset = None if resets is None else resets[:, piece]
            logits, state = model(inputs[:, piece], state, reset=reset, return_state=True)
            found.append(F.cross_entropy(logits[0].float(), targets[piece], reduction="none"))
        rows.append(torch.cat(found).cpu().numpy())
    model.train(training)
    return np.stack(rows)


def by_position(model: nn.Module, data: Packed, edges: list[int], max_sequences: int = 16) -> list[dict[str, Any]]:
    """Mean nats per token in buckets of position ``[edge_i, edge_{i+1})``: do late tokens profit from early ones?"""
    return buckets(position_nats(model, data, max_sequences), edges)


def buckets(table: np.ndarray, edges: list[int]) -> list[dict[str, Any]]:
    """A table of nats ``[n, T]`` in buckets of position."""
    found = []
    for low, high in itertools.pairwise(edges):
        piece = table[:, low:high]
        if piece.size:
            mean = float(piece.mean())
            row = {"from": low, "to": min(high, table.shape[1]), "nats": mean, "perplexity": math.exp(min(mean, 700.0))}
            found.append(row | {"tokens": int(piece.size)})
    return found
