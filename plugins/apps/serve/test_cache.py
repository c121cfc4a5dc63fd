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
from fastsnn_serve.engine.prefix_cache import PrefixCache, worth_keeping
from fastsnn_serve.testing import TEXT, Recorder, bytes_text, decoder, expected, idle, lasting, run_all_requests, until


def test_boundaries_kept() -> None:
    assert [k for k in range(1, 8) if worth_keeping(k, 7)] == [1, 2, 3, 4, 5, 6, 7]
    kept = [k for k in range(1, 401) if worth_keeping(k, 400)]
    assert len(kept) < 25
    assert {1, 2, 4, 8, 16, 32, 64, 128, 256, 400} <= set(kept)
    assert max(b - a for a, b in pairwise(kept)) <= 400 / 8


def test_a_radix_tree_under_a_budget() -> None:
    """Sizes are exact, the least recently used goes first, edges split and vanish, snapshots are copies."""
    state = torch.zeros(10)
    cache = PrefixCache(budget=3 * 40 + 8 * 9, chunk=2)
    cache.put([1, 2, 3, 4], state)
    cache.put([1, 2, 5, 6], state)
    assert (cache.nbytes, cache.shared([1, 2, 5, 7]), cache.shared([9])) == (2 * 40 + 8 * 6, 3, 0)
    assert cache.find([1, 2, 3, 4]) == (0, None)  # without logits, the whole prompt is no hit
    assert cache.find([1, 2, 3, 4, 5])[0] == 4
    cache.put([1, 2], state)
    assert cache.nbytes == 3 * 40 + 8 * 6
    assert cache.find([1, 2, 7])[0] == 2
    cache.put([8, 8, 8], torch.zeros(10))  # one too many: [1, 2, 5, 6] was used least recently
    assert not cache.holds([1, 2, 5, 6])
    assert cache.shared([1, 2, 5, 6]) == 2
    assert cache.nbytes == 3 * 40 + 8 * 7
    assert cache.find([8, 8, 8, 9]) == (0, None)  # a float model's: 3 is no multiple of 2
    assert not cache.put([7], torch.zeros(100))
    cache.put([1, 2], state, torch.zeros(2))
    assert cache.find([1, 2])[0] == 2
    state[0] = 1.0
    assert all(node.snapshot.state[0] == 0 for node in cache.recent)  # its own copies
    for node in list(cache.recent):
        cache.drop(node)
    assert (cache.nbytes, cache.root.children) == (0, {})
    exact = PrefixCache(1000, 2, exact=True)
    exact.put([8, 8, 8], state)
    assert exact.find([8, 8, 8, 9])[0] == 3


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=12), budget=st.integers(0, 700))
def test_the_tree_holds_what_a_list_would(texts: list[list[int]], budget: int) -> None:
    cache, kept = PrefixCache(budget, 1, exact=True), list[tuple[int, ...]]()
    for ids in texts:
        fits = cache.put(ids, torch.tensor(ids))
        assert fits == (8 * 2 * len(ids) <= budget)
        kept = [old for old in kept if old != tuple(ids)] + ([tuple(ids)] if fits else [])
        while sum(8 * len(i) for i in kept) + 8 * len({i[:n] for i in kept for n in range(1, len(i) + 1)}) > budget:
            kept.pop(0)
        assert sorted(tuple(node.snapshot.state.tolist()) for node in cache.recent) == sorted(kept)
        nodes = {i[:n] for i in kept for n in range(1, len(i) + 1)}
        assert cache.nbytes == sum(8 * len(i) for i in kept) + 8 * len(nodes)
        for probe in texts:
            want = max((len(i) for i in kept if len(i) < len(probe) and tuple(probe[: len(i)]) == i), default=0)
            assert cache.shared(probe) == max(
                (n for n in range(len(probe) + 1) if tuple(probe[:n]) in nodes), default=0
            )
            before = list(cache.recent)
            found, hit = cache.find(probe)
            assert found == want
            assert (hit is not None) == bool(want)
            if hit is not None:
                assert hit.state.tolist() == probe[:want]
                kept.append(kept.pop(kept.index(tuple(probe[:want]))))
            assert len(cache.recent) == len(before)


def test_exact_models_hit_at_any_length(integer: Any) -> None:
    """Short prompts, no multiple of anything: the third that shares a beginning resumes where they part."""
    engine, shared = Engine(integer, chunk=64), list(range(1, 42))
    asked = [Recorder(engine, [*shared, 100 + i, 7], 5, seed=i) for i in range(3)]
    for said in asked:
        assert run_all_requests(engine, said)[0][0] == expected(
            integer, said.prompt.ids, 5, seed=said.stream.params.sampling.seed
        )
    assert [said.prompt.cached for said in asked] == [0, 0, 41]
    turn = [*asked[2].prompt.ids, *asked[2].stream.ids]
    later = Recorder(engine, [*turn, 9], 5, seed=1)
    assert run_all_requests(engine, later)[0][0] == expected(integer, later.prompt.ids, 5, seed=1)
    assert later.prompt.cached == len(turn) - 1  # the newest token was never read
    engine.close()


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
        assert ask(prompt, 70) == (bytes_text(answer), 0)
        longer = prompt + answer + [65, 66]
        wanted = bytes_text(expected(model, longer, 9, chunk=16, seed=seed))
        assert ask(longer, 9) == (wanted, len(longer) // 16 * 16)
        assert len(longer) // 16 * 16 > len(prompt) + 60


def test_a_turn_is_listed_until_it_is_cached(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk at a time: in between it is not forgotten, so whoever asks whether there is work left hears of it."""
    engine = Engine(model, chunk=16)
    keep, seen = engine.runner.keep_turn, []

    def watched(ids: list[int], new: int) -> bool:
        seen.append(idle(engine))
        return keep(ids, new)

    monkeypatch.setattr(engine.runner, "keep_turn", watched)
    prompt = list(TEXT.encode())
    run_all_requests(engine, Recorder(engine, prompt, 70, seed=lasting(model, prompt, 70, chunk=16)))
    assert until(lambda: idle(engine))
    engine.close()
    assert len(seen) > 1
    assert not any(seen)


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
        found = run_all_requests(engine, *saids)
    else:
        found = []
        for said in saids:
            found += run_all_requests(engine, said)
            assert not patient or until(lambda: idle(engine))
    assert [tokens for tokens, _ in found] == wanted
    others = [Recorder(fresh, ids, n, seed=seed) for ids, n, seed in asked]
    assert found == run_all_requests(fresh, *others)  # log-probabilities too
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
