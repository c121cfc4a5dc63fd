"""`fastsnn scope --data`: the report of a network over time, on samples that it never learnt from."""

from __future__ import annotations

import json

import numpy as np
import torch

from fastsnn import FastSNN
from fastsnn_core.cli import main


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
