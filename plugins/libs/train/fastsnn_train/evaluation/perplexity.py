"""Perplexity, bits per byte and sparsity on a text: in separate windows, sliding windows, or as one stream."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_console.progress import Progress
from fastsnn_core.errors import FastSNNError
from fastsnn_core.probe import probe
from fastsnn_modules.inputs import check_token_ids, vocabulary_of
from fastsnn_text import tokenizer_of
from fastsnn_train.evaluation.figures import (
    SpikeTotals,
    cross_entropy,
    evaluating,
    nats,
    perplexity_figures,
    piece_length,
    rows_at_once,
)


class EvaluationError(FastSNNError):
    """The evaluation is impossible with these settings."""


def evaluate_text(
    model: nn.Module,
    text: str,
    *,
    seq_len: int = 512,
    start: bool = False,
    stride: int | None = None,
    carry: bool = False,
    batch: int = 8,
    quiet: bool = False,
) -> dict[str, Any]:
    """Perplexity (± its standard error over windows) and bits per byte of `text` in windows of `seq_len` tokens.

    Without `stride` windows do not overlap, and the first token of each is not scored; with `start` each window begins
    with the tokenizer's start token and all its other tokens are scored. With `stride` < seq_len windows overlap, and
    every token but the first of the text is scored once, by the first window that contains it. With `carry` the state
    is carried from window to window: one stream, in which all tokens but the first are scored. Spike statistics cover
    every window; no activations are kept. At most `batch` windows form a batch, fewer for a large vocabulary. Raises
    `EvaluationError` for settings that do not fit together or the text.
    """
    tokenizer, device = tokenizer_of(model), next(model.parameters()).device
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.long)
    check_evaluation(ids, seq_len, start and tokenizer.start is None, stride, carry, batch)
    check_token_ids(ids, vocabulary_of(model), "the text")
    first = tokenizer.start if start else None
    tally = SpikeTotals()
    with evaluating(model), torch.no_grad():
        if carry:
            head = [] if first is None else [first]
            stream = torch.cat([torch.tensor(head, dtype=ids.dtype), ids])
            totals, counts = stream_nats(model, stream, seq_len, device, tally, quiet)
            text_bytes = bytes_of(tokenizer, ids if start else ids[1:])
        else:
            windows = scored_windows(len(ids), seq_len, stride, start)
            totals, counts = read_windows(model, ids, windows, first, batch, device, tally, quiet)
            if stride is None:
                text_bytes = sum(bytes_of(tokenizer, ids[w.scored : w.end]) for w in windows)
            else:
                text_bytes = bytes_of(tokenizer, ids if start else ids[1:])
    bits = {"bits_per_byte": math.fsum(totals) / math.log(2) / max(1, text_bytes)}
    return perplexity_figures(totals, counts) | bits | {"seq_len": seq_len} | tally.figures()


def check_evaluation(ids: Tensor, seq_len: int, no_start: bool, stride: int | None, carry: bool, batch: int) -> None:
    """Raise `EvaluationError` for invalid settings."""
    if seq_len < 2:
        raise EvaluationError(f"seq_len must be at least 2 tokens (one to read, one to predict), got {seq_len}")
    if batch < 1:
        raise EvaluationError(f"batch must be at least 1 window, got {batch}")
    if no_start:
        raise EvaluationError("this tokenizer has no start token")
    if len(ids) < 2:
        raise EvaluationError(f"the text has {len(ids)} tokens; at least 2 are needed")
    if stride is not None and not 0 < stride <= seq_len:
        raise EvaluationError(f"stride must be in 1 … seq_len ({seq_len}), got {stride}")
    if carry and stride is not None:
        raise EvaluationError("carry reads every token once, with all before it in the state; it has no stride")


def bytes_of(tokenizer: Any, ids: Tensor) -> int:
    """Bytes of the text of some tokens."""
    return len(tokenizer.decode(ids.tolist()).encode("utf-8"))


@attrs.frozen
class ScoredWindow:
    """Tokens ``begin … end - 1`` of a text; those from index `scored` on have a loss."""

    begin: int
    scored: int
    end: int


def scored_windows(n: int, seq_len: int, stride: int | None, start: bool) -> list[ScoredWindow]:
    """Windows over n tokens: each token is scored by the first window that has it, unless it begins that window."""
    body = seq_len - 1 if start else seq_len
    step, found, before = min(stride or body, body), [], 0
    for begin in range(0, n, step):
        end = min(begin + body, n)
        scored = max(before, begin if start else begin + 1)
        if scored < end:
            found.append(ScoredWindow(begin, scored, end))
        before = end
        if end == n:
            break
    return found


def read_windows(
    model: nn.Module,
    ids: Tensor,
    windows: list[ScoredWindow],
    start: int | None,
    batch: int,
    device: torch.device,
    tally: SpikeTotals,
    quiet: bool,
) -> tuple[list[float], list[int]]:
    """Loss in nats and number of scored tokens of each window; windows of equal length are batched."""
    longest = max(w.end - w.begin for w in windows)
    batch = rows_at_once(model, batch, longest)
    totals, counts = [], []
    with Progress("evaluating", len(windows), "windows", quiet=quiet) as progress, probe(model, tally.add_record):
        for begin in range(0, len(windows), batch):
            rows = windows[begin : begin + batch]
            for size in sorted({w.end - w.begin for w in rows}, reverse=True):
                group = [w for w in rows if w.end - w.begin == size]
                tokens = torch.stack([ids[w.begin : w.end] for w in group])
                if start is not None:
                    tokens = torch.cat([torch.full((len(tokens), 1), start), tokens], 1)
                losses = nats(model, tokens.to(device)).double().cpu()
                for row, w in zip(losses, group):
                    kept = row[w.scored - w.begin - (start is None) :]
                    totals.append(float(kept.sum()))
                    counts.append(len(kept))
            progress.step(len(rows))
    return totals, counts


def stream_nats(
    model: nn.Module, ids: Tensor, size: int, device: torch.device, tally: SpikeTotals, quiet: bool
) -> tuple[list[float], list[int]]:
    """Loss in nats and number of tokens of each chunk of one stream, with the state carried over."""
    totals, counts, state = [], [], None
    size = min(size, piece_length(model, 1))
    pieces = range(0, len(ids) - 1, size)
    with Progress("evaluating", len(pieces), "pieces", quiet=quiet) as progress, probe(model, tally.add_record):
        for begin in pieces:
            tokens = ids[begin : begin + size + 1][None].to(device)
            logits, state = model(tokens[:, :-1], state, return_state=True)
            totals.append(float(cross_entropy(logits, tokens[:, 1:]).double().sum()))
            counts.append(tokens.shape[1] - 1)
            progress.step()
    return totals, counts
