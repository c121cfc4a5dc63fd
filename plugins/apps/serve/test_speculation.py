"""Drafted tokens change nothing that is said: greedy text, sampled text with a seed, the distribution without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastsnn_serve import Engine
from fastsnn_serve.engine.speculation import Drafts, Lookup
from fastsnn_serve.testing import Recorder, attached, decoder, expected, run


def test_a_lookup_drafts_what_followed() -> None:
    found = Lookup([1, 2, 3, 4, 9, 1, 2])
    assert found.draft(3) == [3, 4, 9]
    found.extend([3, 5])
    assert found.draft(3) == []  # 3 5 was never seen before
    found.extend([1, 2, 3])
    assert found.draft(2) == [5, 1]  # the newest place of 1 2 3
    drafts = Drafts([1, 2, 1, 2], None)
    assert drafts.propose([], 2, 8) == [1, 2]
    drafts.told(0)
    assert [drafts.propose([1], 2, 8), drafts.propose([1, 2], 2, 8)] == [[], []]  # waits after drafts of no use
    assert drafts.propose([1, 2, 1, 2], 2, 8) == [1, 2]


@pytest.mark.parametrize("how", ["n-grams", "draft", "itself"])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_text_is_unchanged(integer: Any, how: str, temperature: float) -> None:
    draft = {"n-grams": None, "draft": attached(decoder(d_model=16, n_layers=1)), "itself": integer}[how]
    engine, prompt = Engine(integer, speculate=4, draft=draft), [1, 2, 3, 4] * 6
    for seed in range(2):
        said = Recorder(engine, prompt, 30, temperature=temperature, seed=seed)
        want = expected(integer, prompt, 30, temperature=temperature, seed=seed)
        assert run(engine, said)[0][0] == want
    drafted, taken = (engine.metrics.total(f"fastsnn_draft_tokens_{what}total") for what in ("", "accepted_"))
    engine.close()
    assert drafted > 0 or (how, temperature) == ("n-grams", 1.0)  # text like noise repeats nothing
    if how == "itself" and temperature == 0:
        assert taken == drafted  # a draft model that is the model itself is never wrong


@pytest.mark.slow
def test_the_distribution_is_unchanged(integer: Any) -> None:
    """Chi-square of the first two tokens over 1 500 unseeded answers against the model's own probabilities of it."""
    engine, prompt, n = Engine(integer, speculate=3, draft=integer, max_waiting=2000), [1, 2] * 8, 1500
    with torch.inference_mode():
        rows = integer(torch.tensor([prompt]))[0, -1].float().softmax(-1)
        first = torch.topk(rows, 6).indices.tolist()
        after = {a: integer(torch.tensor([[*prompt, a]]))[0, -1].float().softmax(-1) for a in first}
    saids = [Recorder(engine, prompt, 3) for _ in range(n)]
    found = [tokens for tokens, _ in run(engine, *saids)]
    engine.close()
    pairs = [(t[0], t[1]) for t in found if len(t) > 1 and t[0] in after]
    cells = sorted(((float(rows[a] * after[a][b]), a, b) for a in first for b in range(256)), reverse=True)
    kept = [(p, a, b) for p, a, b in cells if p * n >= 5]
    assert len(kept) > 5
    assert engine.metrics.total("fastsnn_draft_tokens_total") > n / 2
    rest = 1 - sum(p for p, _, _ in kept)
    counts = [sum(pair == (a, b) for pair in pairs) for _, a, b in kept]
    chi = sum((c - n * p) ** 2 / (n * p) for c, (p, _, _) in zip(counts, kept, strict=True))
    chi += (n - sum(counts) - n * rest) ** 2 / (n * rest)
    df = len(kept)
    assert chi < df + 5 * (2 * df) ** 0.5, f"chi-square {chi:.1f} of {df} degrees of freedom"


def test_float_models_refuse_to_speculate(model: Any, integer: Any) -> None:
    with pytest.raises(ValueError, match="rounds differently"):
        Engine(model, speculate=4)
    with pytest.raises(ValueError, match="needs speculate"):
        Engine(integer, draft=integer)
    with pytest.raises(ValueError, match="must share a tokenizer"):
        Engine(integer, speculate=2, draft=decoder(vocab_size=300, d_model=16))
