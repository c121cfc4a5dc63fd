"""Streams of a W8A model share passes over its weights, and say what they say alone; float models take turns."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastsnn_kernel_numba")

from fastsnn_serve import Engine, app
from fastsnn_serve.engine import decoding, prefill_runner
from fastsnn_serve.engine.spike_view import SpikeView
from fastsnn_serve.http.server import greeting
from fastsnn_serve.testing import Recorder, decoder, expected, run_all_requests, until


@pytest.mark.parametrize("seed", range(6))
def test_streams_share_and_say_what_they_say_alone(integer: Any, seed: int) -> None:
    """Random prompts, lengths and arrivals: tokens and log-probabilities, bit for bit."""
    draw = random.Random(seed)
    asked = [
        ([draw.randrange(256) for _ in range(draw.randint(1, 40))], draw.randint(1, 30), draw.randrange(99))
        for _ in range(9)
    ]
    alone = []
    for prompt, n, key in asked:
        engine = Engine(integer, chunk=16, cache_bytes=0)
        alone += run_all_requests(engine, Recorder(engine, prompt, n, seed=key))
        engine.close()
    engine = Engine(integer, chunk=16, max_streams=draw.choice([3, 16]))
    saids = [Recorder(engine, prompt, n, seed=key) for prompt, n, key in asked]
    order = list(range(len(saids)))
    draw.shuffle(order)
    for i in order:
        engine.submit([saids[i].stream])
        time.sleep(draw.choice([0, 0, 0.003]))
    assert [said.result() for said in saids] == alone
    assert engine.metrics.total("fastsnn_shared_tokens_total") > 0
    engine.close()


@pytest.mark.parametrize("most_read", [1 << 62, 0])
def test_prompts_are_read_in_steps_or_chunks_together(
    integer: Any, monkeypatch: pytest.MonkeyPatch, most_read: int
) -> None:
    """Prompts of every length, from nothing, from the cache and behind a chunk, as the generation loop has them: as
    rows of steps, or, where the layers read faster, in chunks of several prompts."""
    prompts = [[n * (i * i + 1) % 251 for i in range(n)] for n in (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 70)]
    prompts += [[*prompt, *range(7)] for prompt in prompts]  # the state before them is cached
    engine, chunks = Engine(integer, chunk=16, max_streams=5), list[int]()
    packs, steps = list[list[int]](), list[list[int]]()
    run, together, many = engine.runner.run, integer.read_together, integer.read_many
    engine.runner.most_read = most_read

    def packed(pieces: Any, states: Any) -> Any:
        packs.append([len(piece) for piece in pieces])
        return together(pieces, states)

    def stepped(states: Any, pieces: Any) -> Any:
        steps.append([len(piece) for piece in pieces])
        return many(states, pieces)

    monkeypatch.setattr(integer, "read_together", packed, raising=False)
    monkeypatch.setattr(integer, "read_many", stepped, raising=False)
    monkeypatch.setattr(
        engine.runner, "run", lambda ids, *more, **how: chunks.append(len(ids)) or run(ids, *more, **how)
    )
    for some in (prompts[:12], prompts[12:]):
        want = [expected(integer, prompt, 5, chunk=16, seed=1) for prompt in some]
        chunks.clear()
        steps.clear()
        asked = [Recorder(engine, prompt, 5, seed=1) for prompt in some]
        assert [tokens for tokens, _ in run_all_requests(engine, *asked)] == want
    assert all(one.prompt.cached >= len(one.prompt.ids) - 7 for one in asked)
    several = [piece for step in steps for piece in step if piece > 1]
    if most_read:
        assert not packs
        assert not [n for n in chunks if n > 1]
        assert max(several) == 7  # the rest is cached
        assert any(len(step) > 1 and max(step) > 1 for step in steps)
    else:
        assert not several
        assert any(len(pack) > 1 for pack in packs)
        assert all(max(pack) <= 16 and sum(pack) <= prefill_runner.TOGETHER for pack in packs)
    engine.close()


def test_prompts_beside_streams_that_decode_are_few_rows_of_a_step(
    integer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 tokens of prompts where nobody decodes, 16 beside others, the oldest prompt first; none beyond a snapshot."""
    engine, steps = Engine(integer, chunk=64, max_streams=9, cache_bytes=0), list[list[int]]()
    many = integer.read_many

    def stepped(states: Any, pieces: Any) -> Any:
        steps.append([len(piece) for piece in pieces])
        return many(states, pieces)

    monkeypatch.setattr(integer, "read_many", stepped, raising=False)
    engine.runner.steps = 1  # no sample of spikes among these steps
    prompts = [[n + i % 5 for i in range(50)] for n in range(3)]
    want = [expected(integer, prompt, 60, seed=1) for prompt in prompts]
    asked = [Recorder(engine, prompt, 60, seed=1) for prompt in prompts]
    assert [tokens for tokens, _ in run_all_requests(engine, *asked)] == want
    assert steps[:2] == [[32], [18, 14]]  # then the first prompt's stream decodes
    assert steps[2:6] == [[1, 16], [1, 16], [1, 4, 12], [1, 1, 16]]
    assert sum(n for step in steps for n in step if n > 1) == 150
    engine.close()


@pytest.mark.parametrize(
    ("chunk", "lengths", "wanted"), [(64, (50, 8), [[32], [18, 8]]), (20, (50,), [[20], [20], [10]])]
)
def test_the_oldest_prompt_comes_first_and_no_piece_goes_beyond_a_snapshot(
    integer: Any, monkeypatch: pytest.MonkeyPatch, chunk: int, lengths: tuple[int, ...], wanted: list[list[int]]
) -> None:
    engine, steps, many = Engine(integer, chunk=chunk), list[list[int]](), integer.read_many

    def stepped(states: Any, pieces: Any) -> Any:
        steps.append([len(piece) for piece in pieces])
        return many(states, pieces)

    monkeypatch.setattr(integer, "read_many", stepped, raising=False)
    run_all_requests(engine, *[Recorder(engine, [n + i % 5 for i in range(n)], 2, seed=1) for n in lengths])
    engine.close()
    assert steps[: len(wanted)] == wanted


def test_prompts_of_one_pass_wait_for_no_more_than_a_chunk_of_others(
    integer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a stream decodes, a pass has a chunk's tokens at the most; what fails in company is read alone."""
    engine, packs = Engine(integer, chunk=32, max_streams=9, cache_bytes=0), list[list[int]]()
    engine.runner.most_read = 0
    together = integer.read_together

    def packed(pieces: Any, states: Any) -> Any:
        packs.append([len(piece) for piece in pieces])
        if len(packs) == 2:
            raise RuntimeError("planted")
        return together(pieces, states)

    monkeypatch.setattr(integer, "read_together", packed, raising=False)
    decodes = Recorder(engine, [65], 10**4, temperature=0.0)
    engine.submit([decodes.stream])
    assert until(lambda: len(decodes.stream.ids) > 2)
    prompts = [[3 * n + i % 5 for i in range(9 if n % 2 else 14)] for n in range(8)] + [
        [7] * 5 + [n] * 9 for n in range(3)
    ]
    want = [expected(integer, prompt, 5, chunk=32, seed=1) for prompt in prompts]
    asked = [Recorder(engine, prompt, 5, seed=1) for prompt in prompts]
    engine.submit([one.stream for one in asked])
    assert [one.result()[0] for one in asked] == want
    assert len(packs) > 2
    assert all(len(pack) > 1 and sum(pack) <= 32 for pack in packs)
    engine.cancel([decodes.stream])
    engine.close()


def test_a_long_prompt_leaves_half_of_the_time_to_those_who_decode(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a chunk takes as long as ten steps there are ten steps between two chunks; alone it waits for nobody."""
    now, order = [0.0], list[str]()
    monkeypatch.setattr(decoding, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    engine = Engine(model, chunk=4, cache_bytes=0)
    decode, prefill = engine.runner.step_many, engine.runner.prefill

    def took(name: str, seconds: float, work: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            if name == "chunk" or args[0]:
                order.append(name)
                now[0] += seconds
            return work(*args)

        return wrapped

    monkeypatch.setattr(engine.runner, "step_many", took("step", 1.0, decode))
    monkeypatch.setattr(engine.runner, "prefill", took("chunk", 10.0, prefill))
    short, long = Recorder(engine, [65], 70, temperature=0.0), Recorder(engine, [65] * 20, 2, temperature=0.0)
    run_all_requests(engine, short, long)
    assert order[:3] == ["chunk", "chunk", "step"]  # the first chunks of both
    rest = "".join(order[2:]).split("chunk")
    assert [part.count("step") for part in rest[:4]] == [1, 10, 10, 10]
    order.clear()
    run_all_requests(engine, Recorder(engine, [65] * 20, 2, temperature=0.0))
    assert order[:5] == ["chunk"] * 5
    engine.close()


def test_leaving_changes_nothing_for_the_others(integer: Any) -> None:
    engine = Engine(integer, chunk=16, cache_bytes=0)
    alone = run_all_requests(engine, Recorder(engine, [65, 66], 40, seed=3))
    stays, goes = Recorder(engine, [65, 66], 40, seed=3), Recorder(engine, [67], 10**4, temperature=0.0)
    engine.submit([goes.stream, stays.stream])
    assert until(lambda: len(goes.stream.ids) > 5)
    engine.cancel([goes.stream])
    assert [stays.result()] == alone
    engine.close()


def test_a_broken_shared_step_is_said_to_its_streams(integer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(streams: Any, tokens: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(integer, "read_many", broken, raising=False)
    engine = Engine(integer)
    a, b = Recorder(engine, [65], 9, seed=0), Recorder(engine, [66], 9, seed=0)
    engine.submit([a.stream, b.stream])
    for said in (a, b):
        with pytest.raises(RuntimeError, match="planted"):
            said.result()
    engine.close()


def test_who_takes_turns_is_said(integer: Any) -> None:
    assert "streams take turns" in greeting("http://x", app(decoder()))
    assert "only W8A, W4A and W1.58A models are fused" in greeting("http://x", app(decoder()))
    assert "streams take turns" not in greeting("http://x", app(integer))


@pytest.mark.parametrize(("milliseconds", "looks"), [(1000, 1), (0, 5)])
def test_samples_of_spikes_take_a_hundredth_of_the_time(
    integer: Any, monkeypatch: pytest.MonkeyPatch, milliseconds: int, looks: int
) -> None:
    """Every 64th step may be one, but where one takes a second the next has to wait for a hundred."""
    now, found = [0.0], []
    monkeypatch.setattr(prefill_runner, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(SpikeView):
        def __exit__(self, *args: Any) -> None:
            super().__exit__(*args)
            found.append(self)
            now[0] += milliseconds / 1000

    monkeypatch.setattr(prefill_runner, "SpikeView", Slow)
    engine = Engine(integer, cache_bytes=0)
    run_all_requests(engine, *[Recorder(engine, [65], 80, temperature=0.0, seed=i) for i in range(4)])
    engine.close()
    assert len(found) == looks
