"""The conformance kit over this plugin, and what the bundles it writes weigh and compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastsnn_core import build, bundle, create, load, save
from fastsnn_core.spec import from_table
from fastsnn_core.testing import conformance
from fastsnn_exporter_w8a import W8a
from fastsnn_integer.quantization import quantise

test_w8a = conformance("w8a")


def size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize("tied", [True, False])
def test_a_quarter_of_the_size_and_the_same_again_after_loading(tied, tmp_path):
    torch.manual_seed(0)
    model = build(create("model", "decoder", d_model=256, n_layers=4, n_heads=4, vocab_size=1000, tied=tied)).eval()
    exporter = W8a()
    assert not exporter.unsupported(model)
    small = exporter.export(model, tmp_path / "small.snn")
    assert size(small) <= 0.27 * size(save(model, tmp_path / "large.snn"))
    again = load(small)
    kinds = {t.dtype for n, t in again.state_dict().items() if n.endswith("weight") and t.ndim == 2}
    assert kinds == {torch.int8}
    stored = load_file(small / "weights.safetensors")
    assert {n: t.dtype for n, t in stored.items() if t.dtype != torch.int8} == {"packed": torch.bfloat16}
    assert {t.dtype for n, t in again.named_buffers() if n.endswith("scale")} == {torch.float32}
    tokens = model.spec.example(2)
    with torch.no_grad():
        logits = again(tokens)
        assert torch.corrcoef(torch.stack([logits.flatten(), model(tokens).flatten()]))[0, 1] > 0.98
    save(again, tmp_path / "again.snn")
    assert (tmp_path / "again.snn/weights.safetensors").read_bytes() == (small / "weights.safetensors").read_bytes()
    assert model.spec.quant is None
    assert again.meta["milestones"][-1]["what"] == "quantise"
    assert exporter.unsupported(again) == ["its weights are INT8 already"]


def small(**changes):
    torch.manual_seed(0)
    model = build(
        create("model", "decoder", d_model=16, n_layers=2, n_heads=2, vocab_size=17, centred=("ffn_in",), **changes)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
def test_short_vectors_are_rounded_once_and_bundles_of_before_still_load(tied, tmp_path, monkeypatch):
    model = quantise(small(tied=tied))
    vectors = {n: p for n, p in model.named_parameters() if n.endswith(("bias", "centre", "norm.weight"))}
    assert any(n.endswith("centre") for n in vectors)
    assert all(torch.equal(p, p.bfloat16().float()) and p.dtype == torch.float32 for p in vectors.values())
    with torch.no_grad():
        next(iter(vectors.values()))[0] = 1.00001  # what bfloat16 does not hold is stored as it is, under its name
    new = save(model, tmp_path / "new.snn")
    monkeypatch.setattr(bundle, "pack_vectors", lambda kept: kept)
    old = save(model, tmp_path / "old.snn")
    formats = [json.loads((path / "config.json").read_text())["bundle"] for path in (old, new)]
    assert formats == [1, 2]
    assert size(new) < size(old)
    for path in (old, new):
        again = load(path)
        assert again.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
        assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_packed_numbers_that_do_not_fit_are_refused(tmp_path):
    path = save(quantise(small()), tmp_path / "a.snn")
    found = load_file(path / "weights.safetensors")
    found["packed"] = found["packed"][1:]
    with pytest.raises(bundle.BundleError, match=r"packed numbers, \d+ expected"):
        bundle.unpack_vectors(quantise(small()), found, {}, path)


def test_what_has_no_integer_form_says_so():
    assert W8a().unsupported(nn.Linear(2, 2)) == ["Linear has no integer form; decoder, sequential and graph have one"]


def test_parts_without_an_exact_form_are_named(tmp_path, caplog):
    model = build(create("model", "decoder", d_model=16, n_layers=1, n_heads=2, vocab_size=17)).eval()
    model.layers[0].feedforward.extra = nn.GELU()
    W8a().export(model, tmp_path / "x.snn")
    assert "layers.0.feedforward.extra (GELU)" in caplog.text


def from_rows(kind, **rows):
    """A network over time, its weights drawn."""
    torch.manual_seed(0)
    return build(from_table({"fastsnn": 1, "model": {"kind": kind, **rows}}).model)


def test_a_trained_network_over_time_answers_as_before_in_a_third_of_the_bytes(tmp_path):
    """Bars of four places and directions in noise: within 0.2 points of the float weights, one frame or many."""
    fires = {"op": "spikes", "neuron": {"kind": "lif"}}
    layers = (
        {"op": "conv2d", "size": 8, "kernel": [3], "padding": [1], "bias": False},
        {"op": "batch_norm"},
        {"op": "repeat", "steps": 3},
        fires,
        {"op": "conv2d", "size": 24, "kernel": [3], "padding": [1], "stride": [2], "bias": False},
        {"op": "batch_norm"},
        fires,
        {"op": "flatten"},
        {"op": "linear", "size": 4},
    )
    model, draw = from_rows("sequential", input=[1, 8, 8], layers=list(layers)), torch.Generator().manual_seed(1)

    def drawn(n):
        labels = torch.randint(0, 4, (n,), generator=draw)
        images = 0.6 * torch.rand(n, 1, 8, 8, generator=draw)
        places = torch.randint(0, 4, (n,), generator=draw)
        for image, label, at in zip(images, labels.tolist(), places.tolist()):
            row = image[0] if label % 2 else image[0].T
            row[at + (4 if label > 1 else 0)] += 0.3
        return images, labels

    best = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        images, labels = drawn(64)
        nn.functional.cross_entropy(model(images).mean(1), labels).backward()
        best.step()
        best.zero_grad()
    model.eval()
    small = W8a().export(model, tmp_path / "small.snn")
    assert size(small) < size(save(model, tmp_path / "large.snn")) / 2
    again, (images, labels) = load(small), drawn(2000)
    with torch.no_grad():
        before, after = model(images), again(images)
        right = [float((y.mean(1).argmax(-1) == labels).double().mean()) for y in (before, after)]
        assert right[0] > 0.8, "the network has not learnt"
        assert abs(right[0] - right[1]) <= 0.002
        assert torch.equal(torch.cat([again(image[None]) for image in images[:8]]), after[:8])
        again.runtime("event", coder="binary", steps=1)
        assert torch.equal(again(images), after)
    assert W8a().unsupported(again) == ["its weights are INT8 already"]
    assert "one scale per output" in W8a(group=8).unsupported(model)[0]
    save(again.runtime("count"), tmp_path / "again.snn")
    assert torch.equal(load(tmp_path / "again.snn")(images[:8]), after[:8])


def test_a_graph_over_time_has_int8_weights(tmp_path):
    nodes = (
        {"name": "s", "layer": {"op": "spikes", "features": 6, "neuron": {"kind": "lif"}}, "args": "x"},
        {"name": "f", "path": "block.f", "layer": {"op": "linear", "features": 6, "size": 6}, "args": "s"},
        {"name": "y", "call": "add(x, f)"},
    )
    model = from_rows("graph", inputs=[{"name": "x", "shape": [6]}], nodes=list(nodes), output="y").eval()
    x = torch.rand(3, 5, 6)
    again = load(W8a().export(model, tmp_path / "small.snn"))
    assert again.meta["milestones"][-1]["int8"] == ["net.block.f"]
    assert again.net.block.f.weight.dtype == torch.int8
    with torch.no_grad():
        assert 0 < (again(x) - model(x)).abs().max() < 0.02
