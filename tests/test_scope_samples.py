"""`fastsnn scope --data`: the report of a network over time, on samples that it never learnt from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastsnn import FastSNN
from fastsnn_core import build, create
from fastsnn_core.cli import main
from fastsnn_model_sequential import Layer


def files(folder):
    """A bundle of an untrained network, and samples for it."""
    torch.manual_seed(0)
    model = FastSNN.build(arch="snn-mlp", input=(6,), classes=3, time_steps=5, widths=(8,))
    FastSNN.export(model, folder / "m.snn")
    x, y = np.random.default_rng(0).random((40, 6), dtype=np.float32), np.arange(40) % 3
    np.savez(folder / "s.npz", x=x, y=y)
    return model, x


def test_the_report_reads_the_first_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, x = files(tmp_path)
    assert main(["scope", "m.snn", "--data", "s.npz", "--samples", "7", "--out", "report"]) == 0
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "7 of 40 samples of s.npz of shape 7 × 6" in page
    found = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))
    wanted = FastSNN.scope(model.eval(), tokens=torch.from_numpy(x[:7])).data()["scopes"]["sparsity"]
    for report in (wanted, found["scopes"]["sparsity"]):
        assert report.pop("seconds") >= 0  # that is a time
    assert found["scopes"]["sparsity"] == json.loads(json.dumps(wanted))


def test_what_it_refuses_says_what_is_possible(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    np.savez(tmp_path / "wide.npz", x=np.zeros((4, 9), np.float32), y=np.zeros(4, np.int64))
    for words, says in (
        ([], "samples as --data"),
        (["--samples", "3"], "--samples goes with --data"),
        (["--data", "s.npz", "--text", "a"], "give --text or --data, not both"),
        (["--data", "wide.npz"], "9"),
        (["--data", "absent.npz"], "absent.npz"),
    ):
        try:
            assert main(["scope", "m.snn", *words]) == 2
        except SystemExit as stopped:  # argparse
            assert stopped.code == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "m.report").exists()


def test_accuracy_after_every_step_is_that_of_an_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, _ = files(tmp_path)
    assert main(["scope", "m.snn", "--data", "s.npz", "--out", "report", "--scope", "membrane"]) == 0
    found = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))
    capsys.readouterr()
    assert main(["eval", "m.snn", "--data", "s.npz", "--decisions", "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)
    decided = found["decisions"]
    assert decided["samples"] == 40
    for key in ("curve", "exits", "decision_step"):
        assert decided[key] == wanted[key]
    assert len(decided["curve"]) == 5
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert '<section id="decisions">' in page
    assert found["scopes"]["membrane"]["data"]["readout"]["truth"] == "0", "the first sample's class"
    few = FastSNN.scope(model, data="s.npz", samples=7, scopes=["membrane"]).data()
    assert few["decisions"]["samples"] == few["confusion"]["samples"] == 7
    assert few["faults"] == []


def test_networks_that_answer_once_and_numbers_have_no_such_section(tmp_path):
    x = np.random.default_rng(0).random((20, 6), dtype=np.float32)
    layers = (
        Layer(op="linear", size=2),
        Layer(op="spikes", neuron=create("neuron", "ilif")),
        Layer(op="linear", size=2),
    )
    once = build(create("model", "sequential", input=[6], layers=layers))
    over_time = FastSNN.build(arch="snn-mlp", input=(6,), classes=2, time_steps=3, widths=(8,))
    for model, y, confusion in ((once, np.arange(20) % 2, True), (over_time, x[:, :2], False)):
        found = FastSNN.scope(model, data=(x, y), scopes=[]).data()
        assert found["decisions"] is None
        assert (found["confusion"] is not None) == confusion
        assert found["faults"] == []


def test_scope_in_python_refuses_what_does_not_go_together(tmp_path):
    model, x = files(tmp_path)
    tokens, pair = torch.from_numpy(x), (x, np.arange(40) % 3)
    for options, says in (
        ({"data": pair, "tokens": tokens}, "not both"),
        ({"tokens": tokens, "samples": 3}, "goes with data"),
        ({"data": pair, "samples": 0}, "at least one"),
    ):
        with pytest.raises(ValueError, match=says):
            FastSNN.scope(model, **options)
