"""Trackers follow a run and cannot endanger it; signals end it in good order; the screen says how it goes."""

from __future__ import annotations

import json
import re
import signal

import attrs
import pytest
import torch
from attrs import frozen

from fastsnn_core import Session, Tracker, create, param
from fastsnn_train import TrainConfig, Trainer
from fastsnn_train.loop.callbacks import InterruptGuard
from fastsnn_train.loop.progress import TrainingProgress, progress_facts


@frozen
class Told(Tracker):
    """Writes down what it is told."""

    name = "told"
    fails_at: int = param(0, ge=0, doc="step")
    stops_at: int = param(0, ge=0, doc="step")
    seen: list = attrs.field(factory=list)

    def start(self, run):
        tracker, seen = self, self.seen
        seen.append(("start", run.total, len(run.history), run.config["lr"]))

        class Telling(Session):
            def log(self, row):
                if row["step"] == tracker.fails_at:
                    raise OSError("disk full")
                if row["step"] == tracker.stops_at:
                    run.stop("enough")
                seen.append(("log", row["step"]))

            def saved(self, path):
                seen.append(("saved", path.name))

            def end(self, error):
                seen.append(("end", type(error).__name__))

        return Telling()


def run(tracker, make, packed, out=None, **config):
    config = TrainConfig(max_steps=6, batch_size=4, log_every=2, checkpoint_every=4, trackers=(tracker,), **config)
    return Trainer(make(), config, out=out, quiet=True).fit(packed, packed)


def test_a_tracker_is_told_everything_in_order(make, packed, tmp_path):
    tracker = Told()
    run(tracker, make, packed, tmp_path)
    assert tracker.seen == [
        ("start", 6, 0, 0.003), ("log", 2), ("log", 4), ("saved", "step-000004"), ("log", 6), ("saved", "step-000006"),
        ("end", "NoneType"),
    ]  # fmt: skip


def test_a_failing_tracker_is_left_out_and_the_run_goes_on(make, packed, caplog):
    tracker = Told(fails_at=2)
    assert run(tracker, make, packed).step == 6
    assert tracker.seen == [("start", 6, 0, 0.003)]
    assert "tracker told (1) failed and is left out of the rest of this run: OSError('disk full')" in caplog.text


def test_a_tracker_that_cannot_start_ends_the_run_before_its_first_step(make, packed):
    @frozen
    class Broken(Tracker):
        """Needs what is not there."""

        name = "broken"

        def start(self, run):
            raise ImportError("pip install something")

    with pytest.raises(ImportError, match="pip install something"):
        run(Broken(), make, packed)


def test_a_tracker_may_stop_the_run(make, packed, tmp_path, capsys):
    trainer = run(Told(stops_at=4), make, packed, tmp_path)
    assert trainer.step == 4
    assert "held_out" in trainer.history[-1]
    assert [p.name for p in trainer.folder.iterdir()] == ["step-000004"]


def test_trackers_of_a_spec(tmp_path):
    from fastsnn_core import spec

    text = 'fastsnn = 1\n[model]\nkind = "decoder"\n[train]\ntrackers = [{ kind = "jsonl" }, "tensorboard"]\n'
    found = spec.loads(text)
    assert [t.name for t in found.sections["train"].trackers] == ["jsonl", "tensorboard"]
    assert spec.loads(spec.dumps(found)) == found


def test_both_first_party_trackers_together(make, packed, tmp_path):
    pytest.importorskip("tensorboard")
    from fastsnn_tracker_tensorboard import TensorBoard

    trackers = (create("tracker", "jsonl"), TensorBoard())
    config = TrainConfig(max_steps=2, batch_size=4, log_every=1, trackers=trackers)
    Trainer(make(), config, out=tmp_path, quiet=True).fit(packed)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()] == [1, 2]
    assert list((tmp_path / "tensorboard").glob("events*"))


# -- signals ------------------------------------------------------------------------------------------------------


def test_the_first_signal_asks_the_second_interrupts_and_handlers_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with InterruptGuard() as leaving:
        assert leaving.asked == ""
        signal.raise_signal(signal.SIGTERM)
        assert leaving.asked == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# -- the screen ---------------------------------------------------------------------------------------------------


def test_plain_lines_where_there_is_no_terminal(make, packed, capfd):
    Trainer(make(), TrainConfig(max_steps=2, batch_size=4, log_every=1)).fit(packed, packed)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(word in lines[1] for word in ("2/2", "loss ", "held-out ", "tok/s", "silent ", "count "))


def test_quiet_says_nothing(make, packed, capfd):
    Trainer(make(), TrainConfig(max_steps=2, batch_size=4, log_every=1), quiet=True).fit(packed)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_with_speed_loss_firing_and_time_left(monkeypatch):
    import io

    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    row = {"step": 1, "loss": 2.5, "tokens_per_second": 1234.0, "silent": 0.25, "mean_count": 1.5, "held_out": 2.75}
    with TrainingProgress(4) as progress:
        for step in (1, 2, 3):
            progress.update(step, row)
            progress.log(row)
        progress.update(4, {"step": 4, "loss": 2.25})
    shown = screen.getvalue()
    for word in ("4/4", "loss 2.250", "1,234 tok/s", "silent 25%", "count 1.50", "held-out 2.750", "0:00:0"):
        assert word in shown, word


def test_facts():
    assert progress_facts({"loss": 1.0}) == "loss 1.000"
    assert torch.__version__


SPEC = """
fastsnn = 1
[model]
kind = "decoder"
d_model = 16
n_layers = 1
n_heads = 2
attention = ["gla"]
[data]
dataset = "text.txt"
seq_len = 16
[train]
max_steps = 4
batch_size = 2
"""


def test_the_command_says_what_stopped_it_and_shows_no_traceback(tmp_path, monkeypatch, capsys):
    from fastsnn_core.cli import EXIT_INTERRUPT, EXIT_USER, main
    from fastsnn_train import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("to be or not to be " * 60)
    (tmp_path / "wild.toml").write_text(SPEC + 'lr = 1e30\nclip = 0.0\nschedule = "constant"\n')
    assert main(["fit", "wild.toml", "--out", "out", "--quiet"]) == EXIT_USER
    said = capsys.readouterr().err
    assert said.startswith("fastsnn: step 1: the loss is ")
    assert "the batch is in out/bad-batch-step-1.safetensors" in said

    (tmp_path / "spec.toml").write_text(SPEC)

    class Stopped(cli.Trainer):
        def train_step(self, *batch, **more):
            outcome = super().train_step(*batch, **more)
            signal.raise_signal(signal.SIGTERM)
            return outcome

    monkeypatch.setattr(cli, "Trainer", Stopped)
    assert main(["fit", "spec.toml", "--out", "stopped", "--quiet"]) == EXIT_INTERRUPT
    assert "SIGTERM at step 1; its checkpoint is under stopped, --resume goes on from there" in capsys.readouterr().err
    assert (tmp_path / "stopped" / "checkpoints" / "step-000001").is_dir()


def test_the_command_lists_every_setting(capsys):
    from fastsnn_train.cli import fit
    from fastsnn_train.config import DataConfig

    assert fit(["--settings"]) == 0
    said = capsys.readouterr().out
    for section in (DataConfig, TrainConfig):
        assert all(f"\n  {field.name} = " in said for field in attrs.fields(section))
    assert '  schedule = "cosine"  what follows warm-up (one of ' in said


def test_the_command_prints_figures_to_five_digits(tmp_path, monkeypatch, capsys):
    from fastsnn_train.cli import fit

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("to be or not to be " * 60)
    (tmp_path / "spec.toml").write_text(SPEC)
    assert fit(["spec.toml", "--out", "run", "--quiet"]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["steps"] == "4"
    assert {"loss", "lr"} <= said.keys()
    floats = [value for value in said.values() if re.fullmatch(r"[\d.e+-]+", value)]
    assert all(len(value.split("e")[0].replace(".", "").lstrip("-0")) <= 5 for value in floats), said
