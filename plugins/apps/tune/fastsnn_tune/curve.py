"""One point of the curve: perplexity, silent fraction and tokens per second of a model."""

from __future__ import annotations

import statistics
import time
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.probe import probe
from fastsnn_core.quant import quantise
from fastsnn_text import Sampling, generate_ids
from fastsnn_train.evaluate import Tally, nats


@attrs.frozen
class Point:
    """Where a dial leads. `silent_fraction` is over all channels of all sites; speeds are of one stream, decoding."""

    silent_fraction: float
    perplexity: float
    tokens_per_second: float | None = None
    tokens_per_second_w8a: float | None = None


@torch.no_grad()
def loss(model: nn.Module, windows: Tensor, batch: int = 8) -> tuple[float, float]:
    """``(nats per token, silent fraction)`` on windows ``[N, T+1]``."""
    tally, total, count = Tally(), 0.0, 0
    for rows in windows.split(batch):
        with probe(model) as trace:
            found = nats(model, rows)
        tally.add(trace)
        total += float(found.double().sum())
        count += found.numel()
    return total / max(1, count), tally.figures()["silent_fraction"]


def speed(models: dict[str, nn.Module], prompt: list[int], tokens: int, rounds: int) -> dict[str, float]:
    """Tokens per second of each model, decoding greedily after `prompt`: medians over interleaved rounds."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            stream = generate_ids(model, prompt, tokens + 1, Sampling(temperature=0.0))
            next(stream)  # the prompt is read now
            began = time.perf_counter()
            made = sum(1 for _ in stream)
            if turn:  # the first round warms up
                found[name].append(made / (time.perf_counter() - began))
    return {name: statistics.median(rates) for name, rates in found.items()}


def measure(model: Any, windows: Tensor, *, tokens: int = 64, rounds: int = 3) -> Point:
    """A point: perplexity and silent fraction on `windows`; speed as it is and, for float models, as W8A-spike."""
    mean, silent = loss(model, windows)
    if not tokens:
        return Point(silent, float(torch.tensor(mean).exp()))
    forms = {"own": model}
    if hasattr(model.spec, "quant") and model.spec.quant is None:
        forms["w8a"] = quantise(model)
    rates = speed(forms, windows[0][:16].tolist(), tokens, rounds)
    own = rates["own"]
    return Point(silent, float(torch.tensor(mean).exp()), own, rates.get("w8a", None if "w8a" in forms else own))
