"""One point of the curve: perplexity, silent fraction and tokens per second of a model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.probe import probe
from fastsnn_integer.quantization import quantise
from fastsnn_text import Sampling, generate_ids
from fastsnn_train.evaluation.figures import SpikeTotals, nats, rows_at_once

ROUNDS, ENOUGH = 3, 0.1  # rounds, and seconds of decoding in each


@attrs.frozen
class Point:
    """Where a dial leads. `silent_fraction` is over all channels of all sites; speeds are of one stream, decoding."""

    silent_fraction: float
    perplexity: float
    tokens_per_second: float | None = None
    tokens_per_second_w8a: float | None = None


def record(x: str, y: str, points: list[tuple[float, float]], chosen: tuple[float, float] | None) -> dict[str, Any]:
    """A curve for the model's history: what its axes are, its finite points, and the one that was taken."""
    kept = [list(p) for p in points if all(map(math.isfinite, p))]
    return {"x": x, "y": y, "points": kept, "chosen": None if chosen is None else list(chosen)}


@torch.no_grad()
def loss(model: nn.Module, windows: Tensor, batch: int = 8) -> tuple[float, float]:
    """``(nats per token, silent fraction)`` on windows ``[N, T+1]``."""
    tally, total, count = SpikeTotals(), 0.0, 0
    for rows in windows.split(rows_at_once(model, batch, windows.shape[1])):
        with probe(model) as trace:
            found = nats(model, rows)
        tally.add(trace)
        total += float(found.double().sum())
        count += found.numel()
    return total / max(1, count), tally.figures()["silent_fraction"]


@torch.no_grad()
def window_losses(model: nn.Module, windows: Tensor, batch: int = 8) -> Tensor:
    """Nats per token of every window ``[N]``."""
    pieces = windows.split(rows_at_once(model, batch, windows.shape[1]))
    return torch.cat([nats(model, rows).double().reshape(len(rows), -1).mean(1) for rows in pieces])


def decoding_speeds(
    forms: dict[str, nn.Module], settings: Mapping[int, Callable[[nn.Module], None]], prompt: list[int], tokens: int
) -> dict[int, dict[str, float]]:
    """Tokens per second of every form of a model at every setting of its dials, decoding greedily after `prompt`.

    Medians over rounds that go through all settings, so that a busy moment of the machine does not fall on one of them.
    """
    found: dict[int, dict[str, list[float]]] = {n: {name: [] for name in forms} for n in settings}
    for turn in range(ROUNDS + 1):
        for n, apply in settings.items():
            for name, model in forms.items():
                apply(model)
                made, spent = 0, 0.0
                while spent < ENOUGH:  # a small model decodes too few tokens in too short a time to be timed by
                    stream = generate_ids(model, prompt, tokens + 1, Sampling(temperature=0.0))
                    next(stream)  # the prompt is read now
                    began = time.perf_counter()
                    made += sum(1 for _ in stream)
                    spent += time.perf_counter() - began
                if turn:  # the first round warms up
                    found[n][name].append(made / spent)
    return {n: {name: statistics.median(rates) for name, rates in row.items()} for n, row in found.items()}


def forms_of(model: Any) -> dict[str, nn.Module]:
    """The model as it is, and, where its weights are floats, as W8A-spike."""
    forms = {"own": model}
    if hasattr(model.spec, "quant") and model.spec.quant is None:
        forms["w8a"] = quantise(model)
    return forms


def point(loss: tuple[float, float], rates: dict[str, float]) -> Point:
    """A point of the curve, from its nats per token and silent fraction and what `decoding_speeds` gave."""
    mean, silent = loss
    own = rates.get("own")
    return Point(silent, math.exp(min(mean, 700.0)), own, rates.get("w8a", own))
