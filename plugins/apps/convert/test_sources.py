"""Where networks come from: weights with a spec, bundles, the command line; and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastsnn_convert import ConversionError, convert
from fastsnn_convert.cli import main
from fastsnn_core import build, create, load, save

SPEC = {
    "kind": "sequential",
    "input": [1, 6, 6],
    "layers": [
        {"op": "conv2d", "size": 4, "kernel": [3]},
        {"op": "batch_norm"},
        {"op": "relu"},
        {"op": "flatten"},
        {"op": "linear", "size": 3},
    ],
}
NAMES = {"conv": "layers.0", "bn": "layers.1", "fc": "layers.4"}
TOML = """fastsnn = 1
[model]
kind = "sequential"
input = [1, 6, 6]
layers = [
    { op = "conv2d", size = 4, kernel = [3] },
    { op = "batch_norm" },
    { op = "relu" },
    { op = "flatten" },
    { op = "linear", size = 3 },
]
"""


class Foreign(nn.Module):
    """Somebody's network with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)
        nn.init.normal_(self.bn.running_mean)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().flatten(1))


@pytest.fixture
def foreign(tmp_path):
    torch.manual_seed(0)
    model = Foreign().eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "net.toml").write_text(TOML)
    return model, tmp_path


def test_foreign_weights_with_a_spec(foreign):
    model, folder = foreign
    x = torch.randn(5, 1, 6, 6)
    for source in (folder / "weights.safetensors", str(folder / "weights.safetensors"), model.state_dict()):
        for spec in (SPEC, folder / "net.toml", str(folder / "net.toml")):
            done = convert(source, spec=spec, names=NAMES, example=x, neuron={"kind": "adaptive_threshold", "k": 1e4})
            torch.testing.assert_close(done.model(x), model(x), rtol=2e-3, atol=2e-3)
    assert [r["note"] for r in done.report["modules"]][1] == "folded into the layer before it"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("fc.bias"), "layers.4.bias [3] is missing"),
        (lambda s: s.update(more=torch.zeros(1)), "more is not part of the spec"),
        (
            lambda s: s.update({"fc.weight": torch.zeros(3, 5)}),
            "layers.4.weight has shape [3, 5], the spec asks for",
        ),
        (lambda s: s.pop("bn.running_var"), "layers.1.running_var [4] is missing"),
    ],
    ids=["missing", "unknown", "shape", "buffer"],
)
def test_weights_that_do_not_fit_their_spec(foreign, change, says):
    model, folder = foreign
    state = dict(model.state_dict())
    change(state)
    save_file(state, folder / "other.safetensors")
    for source in (state, folder / "other.safetensors"):
        with pytest.raises(ConversionError) as error:
            convert(source, spec=SPEC, names=NAMES, example=torch.zeros(1, 1, 6, 6), to=folder / "out.snn")
        assert says in str(error.value)
        assert "Names can be mapped" in str(error.value)
    assert str(folder / "other.safetensors") in str(error.value)
    assert not (folder / "out.snn").exists()


def test_files_that_are_no_safetensors(foreign):
    _, folder = foreign
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "short.safetensors").write_bytes(b"1234")
    (folder / "huge.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + whole[8:])
    torch.save({"a": torch.zeros(1)}, folder / "weights.pt")
    cases = {
        "cut.safetensors": "is damaged",
        "short.safetensors": "is too short",
        "huge.safetensors": "says that its header is 1099511627776 bytes",
        "weights.pt": "is a pickle, which runs code when it is read",
        "absent.safetensors": "there is no such file or folder",
    }
    for name, says in cases.items():
        with pytest.raises(ConversionError) as error:
            convert(folder / name, spec=SPEC)
        assert says in str(error.value), name
        assert str(folder / name) in str(error.value)
        if name != "absent.safetensors":  # what is not there has no form: what can be read is said of what is
            assert ".safetensors" in str(error.value).replace(name, ""), str(error.value)


def test_weights_without_a_spec(foreign):
    model, _ = foreign
    with pytest.raises(ConversionError, match="holds weights only; say what network they belong to"):
        convert(model.state_dict())
    with pytest.raises(ConversionError, match="spec: no model called 'sequentail'"):
        convert(model.state_dict(), spec=SPEC | {"kind": "sequentail"})


def test_a_bundle_is_converted(tmp_path):
    dense = build(create("model", "sequential", input=(6,), layers=layers()))
    save(dense.eval(), tmp_path / "dense.snn")
    x = torch.randn(32, 6)
    done = convert(tmp_path / "dense.snn", calibration=x, steps=5, to=tmp_path / "spiking.snn")
    assert done.report["quality"]["output_error"] < 0.1
    again = load(tmp_path / "spiking.snn")
    assert torch.equal(again(x), done.model(x))
    assert again.meta["milestones"][-1]["what"] == "convert"
    twice = convert(tmp_path / "spiking.snn", example=x)
    torch.testing.assert_close(twice.model(x), done.model(x))


def layers():
    from fastsnn_model_sequential import Layer

    return Layer(op="linear", size=8), Layer(op="relu"), Layer(op="linear", size=2)


def test_the_command(foreign, capsys):
    model, folder = foreign
    x = torch.randn(16, 1, 6, 6)
    np.save(folder / "x.npy", x.numpy())
    save_file({"x": x}, folder / "x.safetensors")
    save_file({"x": x, "y": x + 1}, folder / "two.safetensors")
    words = [str(folder / "weights.safetensors"), "--to", str(folder / "out.snn"), "--spec", str(folder / "net.toml")]
    words += ["--names", "conv=layers.0,bn=layers.1,fc=layers.4", "--steps", "4"]
    for inputs in ("x.npy", "x.safetensors"):
        assert main([*words, "--calibration", str(folder / inputs)]) == 0
    assert f"wrote {folder / 'out.snn'}" in capsys.readouterr().out
    snn = load(folder / "out.snn")
    with torch.no_grad():
        y0, y = model(x), snn(x)
    error = float((y - y0).norm() / (y0 - y0.mean(0)).norm())
    quality = snn.meta["milestones"][-1]["quality"]
    assert error < 0.15
    assert quality["output_error"] == pytest.approx(error, rel=1e-3)
    assert 0 < quality["output_error_stderr"] < error
    page = folder / "report.html"
    assert main([*words, "--json", "--html", str(page), "--code", "unary", "--coverage", "activations"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["code"], found["coverage"], found["steps"]) == ("unary", "activations", 4)
    assert "<table>" in page.read_text()
    assert (
        main([*words, "--calibration", str(folder / "x.npy"), "--heal", str(folder / "x.npy"), "--heal-steps", "2"])
        == 0
    )
    assert len(load(folder / "out.snn").meta["milestones"][-1]["healed"]) == 2
    with pytest.raises(ConversionError, match="is converted without burst, k; options: example, calibration"):
        main([*words, "--k", "2", "--burst", "1"])
    with pytest.raises(ConversionError, match="holds 2 tensors"):
        main([*words, "--calibration", str(folder / "two.safetensors")])
    with pytest.raises(ConversionError, match=r"nothing.npy cannot be read"):
        main([*words, "--calibration", str(folder / "nothing.npy")])
