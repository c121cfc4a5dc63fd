"""The conformance kit over this plugin, and what the bundles it writes weigh and compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastsnn_core import build, bundle, create, load, save
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
    assert W8a().unsupported(nn.Linear(2, 2)) == ["Linear has no integer form; the decoder has one"]


def test_parts_without_an_exact_form_are_named(tmp_path, caplog):
    model = build(create("model", "decoder", d_model=16, n_layers=1, n_heads=2, vocab_size=17)).eval()
    model.layers[0].feedforward.extra = nn.GELU()
    W8a().export(model, tmp_path / "x.snn")
    assert "layers.0.feedforward.extra (GELU)" in caplog.text
