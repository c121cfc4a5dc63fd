"""Presets of networks over time: what they build, what they refuse; fit and eval from the shell."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastsnn import FastSNN
from fastsnn.networks import NETWORKS
from fastsnn_core import bundle
from fastsnn_core.cli import main
from fastsnn_core.errors import FastSNNError

SMALL = {
    "snn-mlp": {"input": (6,), "widths": (8,)},
    "snn-recurrent": {"input": (6,), "widths": (8,)},
    "snn-conv": {"input": (2, 8, 8), "widths": (4, 4), "hidden": 8},
}


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_preset_takes_samples_with_and_without_time(arch, tmp_path):
    model = FastSNN.build(arch=arch, classes=3, time_steps=5, **SMALL[arch]).eval()
    x = torch.rand(2, *SMALL[arch]["input"])
    y = model(x)
    assert y.shape == (2, 5, 3)
    torch.testing.assert_close(model(x[:, None].expand(2, 5, *x.shape[1:])), y)
    bundle.save(model, tmp_path / "m.snn")
    assert torch.equal(bundle.load(tmp_path / "m.snn")(x), y)
    torch.testing.assert_close(model.runtime("event", calibration=x)(x), y)
    coded = FastSNN.build(arch=arch, classes=3, time_steps=5, coder="rate", **SMALL[arch]).eval()
    assert coded(x).shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"arch": "snn-cnv"}, "did you mean 'snn-conv'"),
        ({"arch": "snn-conv", "input": (6,)}, "takes images"),
        ({"arch": "snn-mlp", "time_steps": 0}, "time_steps is a whole number"),
        ({"arch": "snn-mlp", "width": 3}, "did you mean 'widths'"),
        ({"arch": "snn-mlp", "neuron": "lff"}, "did you mean 'lif'"),
        ({"arch": "snn-mlp", "coder": "binary"}, "encode takes a coder of values"),
    ],
)
def test_what_a_preset_refuses(given, says):
    with pytest.raises(FastSNNError, match=says):
        FastSNN.build(**given)


def test_a_network_names_the_inputs_it_takes():
    net = FastSNN.build(arch="snn-mlp", input=(6,), classes=3, time_steps=2, widths=(8,)).eval()
    whole = torch.arange(12).view(2, 6)
    assert torch.equal(net(whole), net(whole.float()))
    for wrong, says in (
        (torch.rand(4, 5), r"takes \[B, 6\] or \[B, T, 6\], got \[4, 5\]"),
        (torch.rand(4), "dimensions expected: 2"),
        (None, "must be a tensor, got NoneType"),
        ("x", "must be a tensor, got str"),
    ):
        with pytest.raises(FastSNNError, match=says):
            net(wrong)


def test_a_network_without_samples_says_so():
    with pytest.raises(FastSNNError, match="give labelled samples"):
        FastSNN.fit(FastSNN.build(arch="snn-mlp", **SMALL["snn-mlp"]))


SPEC = """
fastsnn = 1
[model]
kind = "sequential"
input = [6]
layers = [{ op = "linear", size = 16 }, { op = "repeat", steps = 2 }, { op = "spikes", neuron = { kind = "lif" } },
    { op = "linear", size = 3 }]
[data]
task = "classification"
dataset = "samples.npz"
[train]
max_steps = 60
batch_size = 16
lr = 0.01
"""


def test_fit_and_eval_from_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    y = np.arange(120) % 3
    x = np.random.default_rng(0).normal(size=(120, 6)) * 0.3 + 2 * np.eye(3, 6)[y]
    np.savez("samples.npz", x=x, y=np.array(["ape", "bee", "cat"])[y])
    (tmp_path / "spec.toml").write_text(SPEC)
    assert main(["fit", "spec.toml", "--out", "run", "--json"]) == 0
    fitted = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert fitted["accuracy"] > 0.9
    np.savez("few.npz", x=x[1:3], y=np.array(["bee", "cat"]))  # two of three classes, by name
    assert main(["eval", "run/model.snn", "--data", "few.npz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == 1.0
    assert found["confusion"] == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert main(["eval", "run/model.snn", "--data", "samples.npz"]) == 0
    assert "confusion (row: truth, column: answer):" in capsys.readouterr().out
    np.savez("odd.npz", x=x[:2], y=np.array(["bee", "dog"]))
    assert main(["eval", "run/model.snn", "--data", "odd.npz"]) == 2
    assert "sample 1 of odd.npz: class 'dog'" in capsys.readouterr().err
