"""Drafted tokens change nothing that is said: greedy text, sampled text with a seed, the distribution without one."""

from __future__ import annotations

import random
from collections import Counter, deque
from itertools import product
from typing import Any

import pytest
import torch

from fastsnn_serve import Engine
from fastsnn_serve.engine.decoding import DecodeLoop
from fastsnn_serve.engine.prefix_cache import PrefixCache
from fastsnn_serve.engine.speculation import Drafts, Lookup
from fastsnn_serve.engine.streams import Prompt, SamplingParams, Stream
from fastsnn_serve.metrics import Metrics
from fastsnn_serve.testing import Recorder, attached, decoder, expected, run_all_requests
from fastsnn_text import ByteTokenizer, Sampling


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
        assert run_all_requests(engine, said)[0][0] == want
    drafted, taken = (engine.metrics.total(f"fastsnn_draft_tokens_{what}total") for what in ("", "accepted_"))
    engine.close()
    assert drafted > 0 or (how, temperature) == ("n-grams", 1.0)  # text like noise repeats nothing
    if how == "itself" and temperature == 0:
        assert taken == drafted  # a draft model that is the model itself is never wrong


class Chain:
    """A Markov chain in the runner's place: the next token's logits depend on the last token alone."""

    def __init__(self, size: int) -> None:
        self.table = 1.5 * torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        self.cache, self.exact = PrefixCache(0, 8), True

    def read_drafts(self, stream: Any, drafts: list[int]) -> tuple[torch.Tensor, Any, Any]:
        return self.table[None, [stream.ids[-1], *drafts]], None, None

    def begin(self, state: Any, room: int) -> Any:
        return state

    def resume(self, ids: list[int], before: Any, room: int) -> Any:
        return before


def chi_square(counts: Counter[Any], probabilities: dict[Any, float]) -> float:
    """Standard deviations by which the statistic is above its mean; cells that expect fewer than five are one."""
    n = counts.total()
    cells = [(counts[key], n * p) for key, p in probabilities.items() if n * p >= 5]
    if len(cells) < len(probabilities):
        cells.append((n - sum(c for c, _ in cells), n - sum(e for _, e in cells)))
    df = len(cells) - 1
    assert df >= 5
    return (sum((c - e) ** 2 / e for c, e in cells) - df) / (2 * df) ** 0.5


@pytest.mark.parametrize("drafted", ["likeliest", "unlikely", "random"])
def test_accepting_keeps_the_distribution(drafted: str) -> None:
    """Chi-square of three tokens of a chain over five: of 1 200 answers, whatever was drafted, good or bad."""
    size, draw, turns = 5, random.Random(1), deque[Any]()
    chain, metrics, tokenizer = Chain(size), Metrics(), ByteTokenizer()
    decoder: Any = DecodeLoop(chain, tokenizer, frozenset(), metrics, turns, 3)  # type: ignore[arg-type]
    rank = {"likeliest": -1, "unlikely": 0}.get(drafted)
    order = chain.table.argsort(-1).tolist()
    found: Counter[Any] = Counter()
    for seed in range(1200):
        params = SamplingParams(Sampling(seed=seed), 4)
        stream = Stream(Prompt([0]), params, tokenizer, lambda delta: None)
        stream.ids, stream.lookup = [0], Drafts([0], None)
        while len(stream.ids) < 4:
            drafts = list[int]()
            for _ in range(min(3, 4 - len(stream.ids) - 1)):
                last = [*stream.ids, *drafts][-1]
                drafts.append(draw.randrange(size) if rank is None else order[last][rank])
            decoder.accept(stream, drafts)
        found[tuple(stream.ids[1:])] += 1
    rows = chain.table.softmax(-1)
    paths = product(range(size), repeat=3)
    want = {(a, b, c): float(rows[0, a] * rows[a, b] * rows[b, c]) for a, b, c in paths}
    taken, all_drafts = (metrics.total(f"fastsnn_draft_tokens_{what}total") for what in ("accepted_", ""))
    assert 0 < taken < all_drafts
    assert chi_square(found, want) < 5


@pytest.mark.slow
def test_the_distribution_is_unchanged(integer: Any) -> None:
    """Chi-square of the second token of 150 answers of a model that drafts for itself, in bins of its law."""
    engine, prompt, n = Engine(integer, speculate=1, draft=integer, max_waiting=2000), [1, 2] * 3, 150
    with torch.inference_mode():
        first = integer(torch.tensor([prompt]))[0, -1].float().softmax(-1)
        pairs = torch.tensor([[*prompt, a] for a in range(257)])
        second = torch.cat([integer(rows)[:, -1].float().softmax(-1) for rows in pairs.split(64)])
    law = (first[:, None] * second)[:256].sum(0) / first[:256].sum()
    where = ((law[law.argsort()].cumsum(0) - 1e-6) * 6).long().clamp(0, 5)[law.argsort().argsort()].tolist()
    saids = [Recorder(engine, prompt, 3, seed=seed) for seed in range(n)]
    found = [tokens for tokens, _ in run_all_requests(engine, *saids)]
    assert engine.metrics.total("fastsnn_draft_tokens_total") > n / 2
    engine.close()
    bins = {i: float(sum(law[t] for t in range(257) if where[t] == i)) for i in range(6)}
    counts = Counter(where[tokens[1]] for tokens in found if len(tokens) > 1)
    assert chi_square(counts, bins) < 5


def test_float_models_refuse_to_speculate(model: Any, integer: Any) -> None:
    with pytest.raises(ValueError, match="rounds differently"):
        Engine(model, speculate=4)
    with pytest.raises(ValueError, match="needs speculate"):
        Engine(integer, draft=integer)
    with pytest.raises(ValueError, match="must share a tokenizer"):
        Engine(integer, speculate=2, draft=decoder(vocab_size=300, d_model=16))
