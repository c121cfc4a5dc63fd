"""Exactness: whatever else is served, cached, evicted, restored or drafted, a stream says what it says alone.

Random schedules against engines that live on, so that what one schedule leaves in the cache meets the next.
``FASTSNN_SCHEDULES`` sets how many (300 in CI, 10 000 in ``nox -s slow``).
"""

from __future__ import annotations

import os
import random
import time
from importlib.util import find_spec
from typing import Any

import pytest

from fastsnn_serve import Engine
from fastsnn_serve.engine.grammar import Grammars
from fastsnn_serve.engine.prefill_runner import PrefillRunner
from fastsnn_serve.engine.sessions import Sessions
from fastsnn_serve.testing import Recorder, attached, decoder

SCHEDULES = int(os.environ.get("FASTSNN_SCHEDULES", "300"))
BASES = ([i * i % 7 for i in range(60)], [1, 2, 3] * 20, [5] + [i * i % 7 for i in range(59)])
SCHEMA = {"type": "array", "items": {"enum": [1, "a", None]}, "minItems": 2}
Said = tuple[list[int], list[float | None]]


class Case:
    """An engine of one kind, and what its streams say alone."""

    def __init__(self, model: Any, folder: Any, **options: Any) -> None:
        self.model, self.engine = model, Engine(model, chunk=8, max_streams=4, cache_bytes=200_000, **options)
        self.alone_engine = Engine(model, chunk=8, max_streams=1, cache_bytes=0)
        self.known: dict[Any, Said] = {}
        self.sessions, self.names = Sessions(folder, model, None, 8), 0
        self.grammar = None  # where llguidance is installed: some streams write JSON by a schema
        if find_spec("llguidance") is not None:
            self.grammar = Grammars(self.engine.tokenizer, self.engine.sizes.vocab).schema(SCHEMA)

    def alone(self, ids: list[int], n: int, how: dict[str, Any]) -> Said:
        """From an engine that caches nothing, drafts nothing and serves nobody else."""
        key = (tuple(ids), n, tuple(how.items()))
        if key not in self.known:
            said = self.recorder(self.alone_engine, ids, n, how)
            self.alone_engine.submit([said.stream])
            self.known[key] = said.result()
        return self.known[key]

    def recorder(self, engine: Engine, ids: list[int], n: int, how: dict[str, Any]) -> Recorder:
        """A stream, under the grammar where `how` says so."""
        return Recorder(engine, ids, n, **how | {"grammar": self.grammar if how["grammar"] else None})

    def run(self, seed: int) -> None:
        """One schedule."""
        draw, engine = random.Random(seed), self.engine
        asked: list[tuple[Recorder, list[int], int, dict[str, Any], bool]] = []
        said: list[int] = []
        for _ in range(draw.randint(1, 6)):
            what = draw.random()
            if what < 0.12:
                engine.ask(lambda runner: evict(runner, draw.choice([0, 1, 5]))).result(60)
            elif what < 0.2:
                ids = draw.choice(BASES)[: draw.randint(1, 40)]
                self.names = (self.names + 1) % 5
                name = f"s{self.names}"
                engine.ask(lambda runner, name=name, ids=ids: self.sessions.save(name, ids, runner)).result(60)
                engine.ask(lambda runner: evict(runner, 0)).result(60)
                engine.ask(lambda runner, name=name: self.sessions.restore(name, runner)).result(60)
            ids = draw.choice(BASES)[: draw.choice([8, 16, 24, draw.randint(1, 50)])]
            ids = [*ids, *[draw.randrange(7) for _ in range(draw.choice([0, 0, 3]))]]
            if said and draw.random() < 0.3:  # the next turn of what was said
                ids = [*said, draw.randrange(7)]
            n, how = draw.randint(1, 24), {
                "seed": draw.randrange(3), "temperature": draw.choice([0.0, 0.0, 0.7, 1.0]),
                "grammar": draw.random() < 0.2,
            }  # fmt: skip
            one = self.recorder(engine, ids, n, how)
            engine.submit([one.stream])
            gone = draw.random() < 0.2
            asked.append((one, ids, n, how, gone))
            if gone:
                time.sleep(draw.choice([0, 0.002]))
                engine.cancel([one.stream])
            elif draw.random() < 0.4:
                said = [*ids, *self.check(asked.pop())[0]]
            time.sleep(draw.choice([0, 0, 0.001]))
        for row in asked:
            if not row[-1]:
                self.check(row)

    def check(self, row: Any) -> Said:
        """Tokens and log-probabilities, bit for bit."""
        one, ids, n, how, _ = row
        found, want = one.result(), self.alone(ids, n, how)
        assert found == want, f"{ids} {n} {how}: {found} instead of {want}, {one.prompt.cached} tokens cached"
        return found

    def close(self) -> None:
        """End both engines."""
        self.engine.close()
        self.alone_engine.close()


def evict(runner: PrefillRunner, keep: int) -> Any:
    """A job: forget the oldest snapshots."""
    while len(runner.cache.recent) > keep:
        runner.cache.drop(next(iter(runner.cache.recent)))
    yield True


@pytest.fixture(scope="module")
def cases(integer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Integer models plain, with n-gram drafts and with a draft model; a float model."""
    folder = tmp_path_factory.mktemp("sessions")
    made = {
        "integer": Case(integer, folder / "a"),
        "n-grams": Case(integer, folder / "b", speculate=4),
        "draft": Case(integer, folder / "c", speculate=3, draft=attached(decoder(d_model=16, n_layers=1))),
        "float": Case(decoder(d_model=16, n_layers=1), folder / "d"),
    }
    yield made
    for case in made.values():
        case.close()


@pytest.mark.parametrize("kind", ["integer", "n-grams", "draft", "float"])
def test_schedules(cases: dict[str, Case], kind: str) -> None:
    case, first = cases[kind], int(os.environ.get("FASTSNN_SEED", "0"))
    for seed in range(first, first + -(-SCHEDULES // len(cases))):
        try:
            case.run(seed)
        except Exception as error:
            error.add_note(f"schedule {seed} of {kind}")
            raise
    metrics = case.engine.metrics
    assert metrics.total("fastsnn_prefix_cache_hits_total") > 0
    if kind == "integer":
        assert metrics.total("fastsnn_shared_tokens_total") > 0
    if kind in ("n-grams", "draft"):
        drafted, taken = (metrics.total(f"fastsnn_draft_tokens_{what}total") for what in ("", "accepted_"))
        assert 0 < taken < drafted  # drafts were left, too
