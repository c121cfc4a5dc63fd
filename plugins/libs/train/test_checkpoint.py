"""Checkpoints on disk: whole or named as damaged, the newest and the best kept, an earlier run never overwritten."""

from __future__ import annotations

import json

import pytest
import torch

from fastsnn_train import TrainConfig, Trainer
from fastsnn_train.loop import checkpoint
from fastsnn_train.loop.checkpoint import CheckpointError

CONFIG = TrainConfig(max_steps=9, batch_size=4, log_every=3, checkpoint_every=3, keep=3)


@pytest.fixture
def run(make, packed, tmp_path):
    """A finished run with checkpoints of steps 3, 6 and 9."""
    return Trainer(make(), CONFIG, out=tmp_path, quiet=True).fit(packed)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("file", "harm", "says"),
    [
        ("model.safetensors", truncate, "model.safetensors is truncated"),
        ("model.safetensors", flip, "model.safetensors is altered"),
        ("optimizer.safetensors", flip, "optimizer.safetensors is altered"),
        ("history.jsonl", flip, "history.jsonl is altered"),
        ("state.json", truncate, "state.json is damaged"),
        ("model.safetensors", lambda path: path.unlink(), "model.safetensors is missing"),
        ("weights.safetensors", lambda path: path.write_bytes(b"mine"), "weights.safetensors is no part of it"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_an_older_whole_one_taken(file, harm, says, run, make, packed, caplog):
    harm(run.folder / "step-000009" / file)
    again = Trainer(make(), CONFIG, out=run.out, quiet=True).fit(packed, resume=True)
    assert says in caplog.text
    assert "step-000006, which is whole, is taken instead" in caplog.text
    assert (run.folder / "damaged-step-000009").is_dir()
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters()))


def test_a_changed_number_in_state_json_breaks_its_seal(run):
    path = run.folder / "step-000009" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"step": 8}, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    with pytest.raises(CheckpointError, match="seal"):
        checkpoint.verify(path.parent)


def test_where_none_is_whole_the_error_names_them_all(run, make, packed):
    for path in checkpoint.found(run.folder):
        truncate(path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint is left: .*step-000009.*step-000006.*step-000003"):
        Trainer(make(), CONFIG, out=run.out, quiet=True).fit(packed, resume=True)


def test_another_model_is_refused(run, make, packed):
    with pytest.raises(CheckpointError, match="of another model"):
        Trainer(make(d_model=8), CONFIG, out=run.out, quiet=True).fit(packed, resume=True)
    with pytest.raises(CheckpointError, match="of another model"):
        Trainer(make(attention=("gla",)), CONFIG, out=run.out, quiet=True).fit(packed, resume=True)


def test_scratch_of_a_killed_process_goes_and_what_it_had_moved_aside_comes_back(run):
    part = run.folder / ".step-000012.1-abc.part"
    part.mkdir()
    (run.folder / "step-000009").rename(run.folder / ".step-000009.1-abc.old")
    checkpoint.tidy(run.folder)
    assert [p.name for p in checkpoint.found(run.folder)] == ["step-000003", "step-000006", "step-000009"]
    assert not part.exists()


def test_a_fresh_start_keeps_the_earlier_run(run, make, packed, caplog):
    Trainer(make(), TrainConfig(max_steps=2), out=run.out, quiet=True).fit(packed)
    Trainer(make(), TrainConfig(max_steps=1), out=run.out, quiet=True).fit(packed)
    names = {p.parent.name + "/" + p.name for p in run.out.glob("checkpoints*/step-*")}
    assert names >= {"checkpoints/step-000001", "checkpoints-1/step-000009", "checkpoints-2/step-000002"}
    assert "held an earlier run's checkpoints" in caplog.text


class Scripted(Trainer):
    """Held-out losses as given, so that the best evaluation is known."""

    losses = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 3.6}

    def evaluate(self, held_out):
        return {"nats_per_token": self.losses[self.step]}


def test_the_best_evaluation_is_kept_and_bundled_on_request(make, packed, tmp_path):
    config = {"max_steps": 10, "batch_size": 4, "eval_every": 2, "log_every": 2, "keep": 2, "checkpoint_every": 1}
    best = Scripted(make(), TrainConfig(**config, bundle="best"), out=tmp_path, quiet=True).fit(packed, packed)
    assert [p.name for p in checkpoint.found(best.folder)] == ["step-000004", "step-000009", "step-000010"]
    assert best.best["step"] == 4
    assert best.model.meta["milestones"][-1]["weights_of_step"] == 4
    short = Trainer(make(), TrainConfig(**config | {"max_steps": 10}), quiet=True)
    for step in range(4):
        short.train_step(packed.batch(step, 4, 0), packed.resets(packed.batch(step, 4, 0)[:, :-1]))
    assert all(torch.equal(a, b) for a, b in zip(best.model.parameters(), short.model.parameters()))


def test_a_checkpoint_is_written_at_a_best_evaluation_without_a_schedule(make, packed, tmp_path):
    config = TrainConfig(max_steps=10, batch_size=4, eval_every=2, keep=1)
    run = Scripted(make(), config, out=tmp_path, quiet=True).fit(packed, packed)
    assert [p.name for p in checkpoint.found(run.folder)] == ["step-000004", "step-000010"]


def test_no_pickle_anywhere(run):
    assert {p.suffix for p in run.folder.rglob("*") if p.is_file()} == {".safetensors", ".json", ".jsonl"}
