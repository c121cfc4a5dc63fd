"""Prompts read once: the prefix cache."""

from __future__ import annotations

from itertools import pairwise, takewhile
from operator import eq
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fastsnn_core import create
from fastsnn_serve import Engine, app
from fastsnn_serve.engine.prefix_cache import PrefixCache, keys, worth_keeping
from fastsnn_serve.testing import TEXT, Recorder, decoder, expected, idle, lasting, run, text_of, until


def test_boundaries_kept() -> None:
    assert [k for k in range(1, 8) if worth_keeping(k, 7)] == [1, 2, 3, 4, 5, 6, 7]
    kept = [k for k in range(1, 401) if worth_keeping(k, 400)]
    assert len(kept) < 25
    assert {1, 2, 4, 8, 16, 32, 64, 128, 256, 400} <= set(kept)
    assert max(b - a for a, b in pairwise(kept)) <= 400 / 8


def test_budget_and_recency() -> None:
    cache = PrefixCache(budget=3 * 40, chunk=2)
    state = torch.zeros(10)
    for name in (b"a", b"b", b"c"):
        cache.put(name, state)
    one = keys([1, 2], 2)[0]
    cache.put(one, state)
    assert list(cache.snapshots) == [b"b", b"c", one]
    assert cache.find([1, 2, 3])[0] == 2
    assert cache.find([1, 2])[0] == 0  # without logits, the whole prompt is no hit
    cache.put(b"d", torch.zeros(20))
    assert list(cache.snapshots) == [one, b"d"]
    cache.put(b"huge", torch.zeros(100))
    assert b"huge" not in cache.snapshots
    assert cache.nbytes == 120
    state[0] = 1.0
    assert cache.snapshots[one].state[0] == 0  # its own copy


def test_cached_tokens_are_told(model: Any) -> None:
    with TestClient(app(model, "m", chunk=16)) as http_client:
        engine = http_client.app.state.engine

        def ask(messages: list[dict[str, str]]) -> Any:
            made = http_client.post(
                "/v1/chat/completions", json={"messages": messages, "max_tokens": 40, "seed": 1}
            ).json()
            assert until(lambda: idle(engine))
            return made["choices"][0]["message"], made["usage"]["prompt_tokens_details"]["cached_tokens"], made["usage"]

        talk = [{"role": "user", "content": "Tell me a story about spikes."}]
        reply, cached, usage = ask(talk)
        assert cached == 0
        again, cached, usage = ask(talk)
        assert (again, cached) == (reply, usage["prompt_tokens"])  # the very same prompt: all of it


def test_a_turn_is_cached_with_its_answer(model: Any) -> None:
    with TestClient(app(model, chunk=16)) as http_client:
        engine, prompt = http_client.app.state.engine, list(TEXT.encode())

        seed = lasting(model, prompt, 70, chunk=16)

        def ask(ids: list[int], n: int) -> Any:
            made = http_client.post("/v1/completions", json={"prompt": ids, "max_tokens": n, "seed": seed}).json()
            assert until(lambda: idle(engine))
            return made["choices"][0]["text"], made["usage"]["prompt_tokens_details"]["cached_tokens"]

        answer = expected(model, prompt, 70, chunk=16, seed=seed)
        assert ask(prompt, 70) == (text_of(answer), 0)
        longer = prompt + answer + [65, 66]
        wanted = text_of(expected(model, longer, 9, chunk=16, seed=seed))
        assert ask(longer, 9) == (wanted, len(longer) // 16 * 16)
        assert len(longer) // 16 * 16 > len(prompt) + 60


@pytest.fixture(scope="module")
def narrow() -> Any:
    """Small enough to run often; windows of 5 and blocks that do not line up with them."""
    layers = (create("attention", "gla"), create("attention", "sliding_window", window=5))
    return decoder(d_model=16, attention=layers)


PROMPTS = st.lists(
    st.tuples(
        st.sampled_from(["first", "second", "follow"]),  # how the prompt begins; follow: with a turn and its answer
        st.sampled_from([8, 16, 24, 40]) | st.integers(1, 45),
        st.just([]) | st.lists(st.integers(0, 3), max_size=12),
        st.just(9) | st.integers(1, 12),
    ),
    min_size=1,
    max_size=6,
)
BASES = {"first": [i * i % 251 for i in range(45)], "second": [9] + [i * i % 251 for i in range(1, 45)]}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(prompts=PROMPTS, snapshots=st.sampled_from([0, 1, 3, 1000]), together=st.booleans(), patient=st.booleans())
@example(prompts=[("first", 40, [], 1), ("first", 16, [], 9)], snapshots=1000, together=False, patient=True)
@example(prompts=[("first", 16, [], 9), ("follow", 1, [2], 9)], snapshots=1000, together=False, patient=True)
def test_with_cache_as_without(narrow: Any, prompts: Any, snapshots: int, together: bool, patient: bool) -> None:
    """Random prompts that share beginnings, continued turns, evictions, alone or together: the same bits."""
    asked: list[tuple[list[int], int, int]] = []
    wanted: list[list[int]] = []
    for i, (base, cut, tail, n) in enumerate(prompts):
        begin = asked[-1][0] + wanted[-1] if base == "follow" and asked else BASES.get(base, BASES["first"])[:cut]
        asked.append((begin + tail, n, i))
        wanted.append(expected(narrow, begin + tail, n, chunk=8, seed=i))
    engine, fresh = Engine(narrow, chunk=8, max_streams=3), Engine(narrow, chunk=8, cache_bytes=0)
    engine.runner.cache.budget = snapshots * (engine.sizes.base + 257 * 4)
    saids = [Recorder(engine, ids, n, seed=seed) for ids, n, seed in asked]
    if together:
        found = run(engine, *saids)
    else:
        found = []
        for said in saids:
            found += run(engine, said)
            assert not patient or until(lambda: idle(engine))
    assert [tokens for tokens, _ in found] == wanted
    others = [Recorder(fresh, ids, n, seed=seed) for ids, n, seed in asked]
    assert found == run(fresh, *others)  # log-probabilities too
    for said, other in zip(saids, others, strict=True):  # and every bit of the state
        assert all(map(torch.equal, said.final, other.final))
        assert said.final
    engine.close()
    fresh.close()
    if snapshots == 1000 and patient and not together:
        for i, (said, (ids, *_)) in enumerate(zip(saids, asked, strict=True)):
            told = [a + answer for (a, *_), answer in zip(asked[:i], wanted[:i], strict=True)]
            shared = max((sum(1 for _ in takewhile(bool, map(eq, a, ids))) for a in told), default=0)
            assert said.prompt.cached >= min(shared, len(ids) - 1) // 8 * 8  # all there is to share
