"""Tokens are drawn from the law that temperature, top-k and top-p leave."""

from __future__ import annotations

import random

import pytest
import torch

from fastsnn_text import Sampling
from fastsnn_text.generate import nucleus


def law(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities, token by token, in double precision."""
    weights = (logits.double() / sampling.temperature).softmax(-1).tolist()
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    if sampling.top_k:
        order = order[: sampling.top_k]
    kept, total, goal = list[int](), 0.0, sampling.top_p * sum(weights[i] for i in order)
    for i in order:
        if total >= goal:
            break
        kept.append(i)
        total += weights[i]
    out = torch.zeros(len(weights), dtype=torch.float64)
    out[kept] = torch.tensor([weights[i] for i in kept], dtype=torch.float64)
    return out / out.sum()


def test_logits_that_take_gradients_are_drawn_from() -> None:
    """As a model gives them outside of `torch.no_grad`."""
    logits = torch.tensor([0.0, 9.0], requires_grad=True)
    for sampling in (Sampling(temperature=0), Sampling(seed=0), Sampling(top_p=0.5, seed=0)):
        assert sampling.pick(logits, sampling.generator()) == 1


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=0), Sampling(temperature=0.6, seed=1), Sampling(top_p=0.8, seed=2), Sampling(top_k=7, seed=3),
        Sampling(temperature=1.5, top_k=20, top_p=0.7, seed=4),
    ],
)  # fmt: skip
def test_tokens_follow_the_law(sampling: Sampling) -> None:
    """Chi-square of 20,000 tokens; what the law leaves out never comes."""
    logits = torch.randn(40, generator=torch.Generator().manual_seed(5)) * 1.5
    logits[3] = -torch.inf
    want, n, generator = law(logits, sampling), 20_000, sampling.generator()
    counts = torch.bincount(torch.tensor([sampling.pick(logits, generator) for _ in range(n)]), minlength=40)
    assert counts[want == 0].sum() == 0
    cells = want * n >= 5
    statistic = float(((counts[cells] - n * want[cells]) ** 2 / (n * want[cells])).sum())
    degrees = int(cells.sum()) - 1
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.9999])
def test_the_nucleus_is_that_of_a_whole_sort(top_p: float) -> None:
    """Of flat and of steep distributions, with ties; the lowest ids of equal ones first."""
    draw = random.Random(1)
    for _ in range(50):
        scale, size = draw.choice([0.0, 0.3, 3.0, 30.0]), draw.choice([1, 5, 300])
        logits = (torch.randn(size) * scale).round(decimals=draw.choice([0, 3]))
        found = sorted(nucleus((logits - logits.max()).exp().numpy(), top_p).tolist())
        assert found == law(logits, Sampling(top_p=top_p)).nonzero()[:, 0].tolist()


def test_a_number_that_rounds_up_to_one_takes_the_last_that_weighs_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number below 1 times a sum may round up to the sum."""
    monkeypatch.setattr(torch, "rand", lambda *size, **how: torch.ones(1, dtype=torch.float64))
    logits = torch.tensor([0.0, 1.0, -torch.inf, -torch.inf])
    assert Sampling(seed=0).pick(logits, Sampling(seed=0).generator()) == 1


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000, 1024])
def test_a_draw_by_pieces_is_the_first_token_whose_sum_is_above(size: int) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 4
    weights = (logits - logits.max()).exp().double()
    for seed in range(40):
        sampling = Sampling(seed=seed)
        goal = torch.rand(1, generator=sampling.generator(), dtype=torch.float64) * weights.sum()
        wanted = int((weights.cumsum(0) > goal).nonzero()[0])
        assert sampling.pick(logits, sampling.generator()) == wanted


def test_extremes() -> None:
    """One number far above all others, temperatures near zero, one possible token, and none."""
    steep = torch.tensor([-3e38, 3e38, 0.0])
    for sampling in (Sampling(seed=0), Sampling(temperature=1e-6, seed=0), Sampling(temperature=1e30, top_k=1, seed=0)):
        assert sampling.pick(steep, sampling.generator()) == 1
    only = torch.full((300,), -torch.inf)
    only[299] = 0.0
    assert Sampling(top_p=0.5, seed=0).pick(only, Sampling(seed=0).generator()) == 299
    for bad in (only - torch.inf, only + torch.nan, torch.full((3,), torch.inf)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            Sampling(seed=0).pick(bad, Sampling(seed=0).generator())
