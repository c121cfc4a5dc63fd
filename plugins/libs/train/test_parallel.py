"""Two processes equal one: gradients, loss curves, checkpoints in both directions, faults and stops agreed on."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastsnn_train import TrainConfig, Trainer
from fastsnn_train.loop import checkpoint
from fastsnn_train.loop.parallel import World
from fastsnn_train.loop.sequence import sequence_shares

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
HERE = Path(__file__).parent
KINDS = ("ddp", "fsdp", "sequence")


def torchrun(*words, processes=2):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *map(str, words),
    ]
    how = os.environ | {"PYTHONFAULTHANDLER": "1"}  # what a process was doing when it aborted
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cases():
    spec = importlib.util.spec_from_file_location("two_processes", HERE / "two_processes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(cases, tmp_path_factory):
    """One process trains here, then two train under torchrun in every way."""
    folder = tmp_path_factory.mktemp("parallel")
    data, config = cases.corpus(), TrainConfig(**cases.CONFIG, accumulate=2)
    Trainer(cases.make(), config, out=folder / "one", quiet=True).fit(data, data.part(0, 300))
    torchrun(HERE / "two_processes.py", folder)
    return folder


@pytest.fixture(scope="module")
def said(folder):
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1)]


def rows(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def worst(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_one_process(kind, accumulate, folder, cases):
    found = load_file(folder / f"{kind}-gradients-{accumulate}.safetensors")
    assert worst(found, cases.gradients("none", 2)) < 1e-12


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_gradients_equal_those_of_one_process(kind, accumulate, folder, cases):
    """Labels of -100 and padding fall unevenly on the two: the mean is over all targets, not of two means."""
    found = load_file(folder / f"{kind}-masked-{accumulate}.safetensors")
    wanted = cases.gradients("none", 2, mask=True)
    assert worst(found, wanted) < 1e-12
    assert worst(found, cases.gradients("none", 2)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_masked_losses_equal_those_of_one_process(kind, folder, said, cases):
    one = Trainer(cases.make(), TrainConfig(**cases.CONFIG), quiet=True).fit([cases.masked()] * 6)
    losses = [row["loss"] for row in one.history]
    assert said[0][f"{kind} masked"] == pytest.approx(losses, abs=1e-9)
    assert said[1][f"{kind} masked"] == pytest.approx(losses, abs=1e-9)
    assert worst(load_file(folder / f"{kind}-masked.safetensors"), cases.weights(one.model)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_curve_is_that_of_one_process(kind, folder):
    one, two = rows(folder / "one"), rows(folder / kind)
    assert [r["step"] for r in two] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(one, two):
        for name in ("loss", "gradient_norm", "held_out", "held_out_ema", "mean_count", "silent"):
            tolerance = 1e-6 if name in ("mean_count", "silent") else 1e-9  # these two are summed in float32
            assert (name in a) == (name in b)
            assert abs(a.get(name, 0.0) - b.get(name, 0.0)) < tolerance, name
        assert all(abs(a["gradient"][name] - b["gradient"][name]) < 1e-9 for name in a["gradient"])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_on_two_resumed_on_one(kind, folder, cases, tmp_path):
    """…and one's on two: both end with the weights of the run that was never stopped."""
    shutil.copytree(folder / kind / "checkpoints" / "step-000003", tmp_path / "checkpoints" / "step-000003")
    sharded = (tmp_path / "checkpoints" / "step-000003" / "shards").is_dir()
    assert sharded == (kind == "fsdp")
    data = cases.corpus()
    trainer = Trainer(cases.make(), TrainConfig(**cases.CONFIG), out=tmp_path, quiet=True)
    trainer.fit(data, data.part(0, 300), resume=True)
    assert trainer.step == 6
    straight = load_file(folder / f"{kind}.safetensors")
    assert worst(cases.weights(trainer.model), straight) < 1e-9
    assert worst(load_file(folder / f"from-one-{kind}.safetensors"), straight) < 1e-9


def test_a_damaged_shard_is_found(folder, tmp_path):
    path = tmp_path / "step-000003"
    shutil.copytree(folder / "fsdp" / "checkpoints" / "step-000003", path)
    shard = next((path / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match="is truncated"):
        checkpoint.verify(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_batch_on_one_process_stops_both(kind, said):
    messages = [said[rank][f"{kind} rank {rank}"] for rank in (0, 1)]
    assert all(m.startswith("step 0: the loss is nan") for m in messages)
    assert "layers.0.feedforward.down" in messages[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_to_one_process_stops_both_at_one_step(kind, said, folder):
    steps = {said[rank][f"{kind} stopped {rank}"] for rank in (0, 1)}
    assert len(steps) == 1
    assert [p.name for p in checkpoint.found(folder / f"stopped-{kind}" / "checkpoints")][
        -1
    ] == f"step-{steps.pop():06d}"


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_that_of_one_process_on_the_same_shares(kind, said, folder, cases):
    """Bit for bit: one process that cuts its rows, or its sequences, where two would share them, adds the same sums."""
    model = cases.make().float()
    if kind == "sequence":
        one = cases.shares(model)
    else:
        one = Trainer(model, TrainConfig(**cases.CONFIG, accumulate=2), quiet=True)
    one.fit(cases.corpus())
    assert [row["loss"] for row in one.history] == said[0][f"{kind} float32"]
    assert worst(cases.weights(one.model), load_file(folder / f"{kind}-float32.safetensors")) == 0.0


def test_no_thread_of_the_group_outlives_it(said):
    """A process that ends while one lets go of a tensor aborts."""
    assert not [name for found in said for name in found["threads"] if "gloo" in name]


def test_shares_that_do_not_come_out_even_are_refused(cases):
    with pytest.raises(ValueError, match="12 tokens cannot be cut evenly into 5 shares"):
        sequence_shares(cases.make(), torch.zeros(1, 12, dtype=torch.long), 5)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="a batch of 3 sequences cannot be shared evenly by 2 processes"):
        World("ddp", 0, 2).rows(torch.zeros(3, 4))


def test_two_processes_without_a_plan_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="parallel = 'ddp' or 'fsdp'"):
        Trainer(torch.nn.Linear(2, 2), TrainConfig())


SPEC = """
fastsnn = 1
[model]
kind = "decoder"
d_model = 16
n_layers = 1
n_heads = 2
attention = ["gla"]
vocab_size = 300
[data]
seq_len = 16
tokenizer = "bpe:300"
[train]
max_steps = 4
batch_size = 4
log_every = 2
parallel = "fsdp"
checkpoint_every = 2
"""


def test_the_command_under_torchrun_and_its_resumption_alone(tmp_path):
    from fastsnn_core import load
    from fastsnn_train.cli import fit

    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    spec.write_text(SPEC)
    said = json.loads(torchrun("-m", "fastsnn_core", "fit", spec, "--out", out, "--json"))
    assert said["steps"] == 4
    model = load(out / "model.snn")
    assert model.meta["tokenizer"]["kind"] == "huggingface"
    assert fit([str(spec), "--out", str(out), "--resume", "--steps", "6", "--quiet"]) == 0
    assert [r["step"] for r in rows(out)] == [2, 4, 6]
