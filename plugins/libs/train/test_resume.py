"""A run that was stopped and resumed equals one that was not: weights, moments, averages, history, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from attrs import frozen

from fastsnn_core import Session, Tracker, create, param
from fastsnn_train import Data, TrainConfig, Trainer
from fastsnn_train.data.streaming import Streamed
from fastsnn_train.loop.snapshot import take

CONFIG = {
    "max_steps": 14, "batch_size": 4, "log_every": 3, "eval_every": 5, "checkpoint_every": 4, "ema": 0.9,
    "rate_weight": 0.1, "rate_high": 2.0, "spike_warmup": 0.7, "accumulate": 2,
}  # fmt: skip


@frozen
class StopAt(Tracker):
    """Sends SIGTERM at a step, as a scheduler does."""

    name = "stop_at"
    step: int = param(1, ge=0, doc="when")

    def start(self, run):
        stop = self.step

        class Stopping(Session):
            def log(self, row):
                if row["step"] == stop:
                    signal.raise_signal(signal.SIGTERM)

        return Stopping()


def state(trainer):
    found = take(trainer.model, trainer.optimizer, trainer.stepper.average)
    return {name: t.detach().clone() for name, t in found.items()}


def timeless(history):
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in history]


def equal(a, b):
    assert timeless(a.history) == timeless(b.history)
    first, second = state(a), state(b)
    assert first.keys() == second.keys()
    assert [n for n in first if not torch.equal(first[n], second[n])] == []


class Loader:
    """Token batches drawn anew in every epoch from whatever generators are about."""

    def __iter__(self):
        order = torch.randperm(5)
        for i in order:
            noise = int(torch.randint(0, 3, ())) + np.random.randint(3) + random.randrange(3)
            yield {"input_ids": (torch.arange(4 * 13).reshape(4, 13) * (int(i) + 2) + noise) % 40}


def sources(kind, packed):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    if kind == "packed":
        return packed
    if kind == "list":
        return [b["input_ids"] for b in Loader()]
    if kind == "loader":
        return Loader()
    if kind == "dataloader":
        rows = [(torch.arange(13) * i) % 40 for i in range(20)]
        return torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True)
    texts = [chr(97 + i % 26) * (5 + i % 17) for i in range(40)]

    class Small:
        vocab_size, end, start = 40, 39, None

        def encode(self, text):
            return [ord(c) % 39 for c in text]

    return Streamed(texts, Small(), 12, end=39, buffer=6)


@pytest.mark.parametrize("kind", ["packed", "list", "loader", "dataloader", "streamed"])
@pytest.mark.parametrize("at", [3, 9])
def test_stopped_and_resumed_equals_uninterrupted(kind, at, make, packed, tmp_path):
    """Step 3 is before the first checkpoint of the schedule, step 9 inside an epoch and past an evaluation."""
    held = packed.part(0, 200)
    whole = Trainer(make(), TrainConfig(**CONFIG), out=tmp_path / "whole", quiet=True)
    whole.fit(sources(kind, packed), held)
    config = TrainConfig(**CONFIG, trackers=(create("tracker", "jsonl"), StopAt(step=at)))
    stopped = Trainer(make(), config, out=tmp_path / "run", quiet=True)
    with pytest.raises(KeyboardInterrupt, match=f"SIGTERM at step {at}"):
        stopped.fit(sources(kind, packed), held)
    resumed = Trainer(make(), TrainConfig(**CONFIG), out=tmp_path / "run", quiet=True)
    source = sources(kind, packed)
    torch.manual_seed(99)  # a new process has other random states
    random.seed(5)
    np.random.seed(5)
    resumed.fit(source, held, resume=True)
    equal(resumed, whole)
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("run", "whole")]
    assert timeless(map(json.loads, lines[0])) == timeless(map(json.loads, lines[1]))


def test_a_neuron_with_rescue_and_learnt_threshold_resumes_exactly(make, packed, tmp_path):
    neuron = create("neuron", "lif", threshold=40.0, learn_threshold=True)
    more = CONFIG | {"rescue": 2, "log_every": 1, "spike_warmup": 0.0}
    whole = Trainer(make(neuron), TrainConfig(**more), out=tmp_path / "whole", quiet=True).fit(packed)
    config = TrainConfig(**more, trackers=(StopAt(step=3),))
    with pytest.raises(KeyboardInterrupt):
        Trainer(make(neuron), config, out=tmp_path / "run", quiet=True).fit(packed)
    equal(Trainer(make(neuron), TrainConfig(**more), out=tmp_path / "run", quiet=True).fit(packed, resume=True), whole)


def test_the_data_begin_again_for_collections_and_end_for_iterators(make, packed, tmp_path):
    batches = [packed.batch(i, 4, 0) for i in range(3)]
    config = TrainConfig(max_steps=8, log_every=1)
    trainer = Trainer(make(), config, quiet=True).fit(batches)
    assert trainer.step == 8
    ended = Trainer(make(), config, out=tmp_path, quiet=True).fit(iter(batches), packed)
    assert ended.step == 3
    assert "held_out" in ended.history[-1]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000003"]


def test_resuming_a_finished_run_changes_nothing(make, packed, tmp_path):
    config = TrainConfig(**CONFIG)
    first = Trainer(make(), config, out=tmp_path, quiet=True).fit(packed, packed)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("step-*/*")}
    again = Trainer(make(), config, out=tmp_path, quiet=True).fit(Data(packed, packed, None), resume=True)
    assert again.history == first.history
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("step-*/*")} == files


def test_other_settings_or_other_data_are_said(make, packed, tmp_path, caplog):
    Trainer(make(), TrainConfig(max_steps=2), out=tmp_path, quiet=True).fit(packed)
    config = TrainConfig(max_steps=3, lr=0.5, log_every=1)
    Trainer(make(norm_eps=1e-6), config, out=tmp_path, quiet=True).fit(packed.part(0, 300), resume=True)
    said = caplog.text
    assert "with other settings: lr" in said
    assert "on other data" in said
    assert "another model specification: norm_eps" in said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_kill_nine_at_random_moments(make, packed, tmp_path):
    """It checkpoints at every step and is killed; what is left is whole, and ends with the same weights."""
    config = TrainConfig(max_steps=25, batch_size=2, log_every=1, checkpoint_every=1, eval_every=7)
    clock = time.perf_counter()
    whole = Trainer(make(), config, out=tmp_path / "whole", quiet=True).fit(packed, packed)
    seconds, rng, killed = time.perf_counter() - clock, random.Random(4), 0
    for n in range(4):
        out = tmp_path / f"run{n}"
        child = os.fork()
        if not child:
            try:
                Trainer(make(), config, out=out, quiet=True).fit(packed, packed)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        equal(Trainer(make(), config, out=out, quiet=True).fit(packed, packed, resume=True), whole)
        assert [p.name for p in out.rglob(".*")] == []
        steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 26))
    assert killed
