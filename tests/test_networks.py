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
    "snn-resnet18": {"input": (2, 8, 8), "widths": (4, 6), "depths": (1, 2)},
    "spikformer-tiny": {"input": (2, 8, 8), "width": 8, "heads": 2},
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


def test_the_recurrent_preset_is_the_one_whose_gradients_hold_over_time():
    made = FastSNN.build(arch="snn-recurrent", classes=3, **SMALL["snn-recurrent"])
    assert [layer.op for layer in made.spec.layers] == ["linear", "batch_norm", "repeat", "spikes", "dropout", "linear"]
    assert made.spec.layers[1].spread == 1.0
    assert made.spec.layers[3].neuron.surrogate.name == "triangle"
    given = FastSNN.build(arch="snn-recurrent", classes=3, tau=10.0, spread=0.0, **SMALL["snn-recurrent"])
    assert given.spec.layers[1].spread is None
    assert given.spec.layers[-1].tau == 10.0


DEEP = [("snn-resnet18", {}), ("snn-resnet18", {"block": "ms", "tdbn": True}), ("spikformer-tiny", {})]


@pytest.mark.parametrize(("arch", "more"), DEEP)
def test_a_deep_preset_learns_streams_and_folds(arch, more, tmp_path):
    torch.manual_seed(0)
    model = FastSNN.build(arch=arch, classes=3, time_steps=3, **SMALL[arch], **more)
    y = np.arange(96) % 3
    x = np.random.default_rng(0).normal(size=(96, 2, 8, 8)).astype("float32") * 0.3
    x[np.arange(96), 0, y] += 2.0  # a bright row says which class
    trainer = FastSNN.fit(model, (x, y), max_steps=30, batch_size=32, lr=0.01, log_every=1, quiet=True)
    losses = [row["loss"] for row in trainer.history]
    assert losses[-1] < 0.6 * losses[0]
    assert trainer.history[-1]["accuracy"] > 0.8
    model = trainer.model.eval()
    film = torch.from_numpy(x[:12]).view(2, 6, 2, 8, 8)
    whole, state, rows = model(film), None, []
    for piece in film.split([1, 3, 2], 1):
        out, state = model(piece, state, return_state=True)
        rows.append(out)
    torch.testing.assert_close(torch.cat(rows, 1), whole)
    assert not torch.allclose(rows[1], model(film[:, 1:4]))  # there is a state to carry
    bundle.save(model, tmp_path / "m.snn")
    assert torch.equal(bundle.load(tmp_path / "m.snn")(film), whole)
    lean = model.double().folded()
    assert "batch_norm" in str(model.spec)
    assert "batch_norm" not in str(lean.spec)
    torch.testing.assert_close(lean(film.double()), model(film.double()))
    bundle.save(lean, tmp_path / "lean.snn")
    assert torch.equal(bundle.load(tmp_path / "lean.snn")(film.double()), lean(film.double()))


def test_what_deep_presets_refuse():
    for given, says in (
        ({"arch": "snn-resnet18", "input": (6,)}, "takes images"),
        ({"arch": "snn-resnet18", "block": "basic"}, "'sew' .adds spikes. or 'ms'"),
        ({"arch": "snn-resnet18", "widths": (4,), "depths": (1, 1)}, "different numbers of stages"),
        ({"arch": "spikformer-tiny", "width": 10, "heads": 4}, "10 channels cannot be shared evenly by 4 heads"),
    ):
        with pytest.raises(FastSNNError, match=says):
            FastSNN.build(**given)


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
    assert main(["eval", "run/model.snn", "--data", "samples.npz", "--decisions"]) == 0
    shown = capsys.readouterr().out
    assert "after step    2: accuracy" in shown
    assert "leaving at a confidence of 0.9: accuracy" in shown
    np.savez("odd.npz", x=x[:2], y=np.array(["bee", "dog"]))
    assert main(["eval", "run/model.snn", "--data", "odd.npz"]) == 2
    assert "sample 1 of odd.npz: class 'dog'" in capsys.readouterr().err
