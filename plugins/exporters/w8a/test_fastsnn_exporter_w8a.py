"""The conformance kit over this plugin, and what the bundles it writes weigh and compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastsnn_core import build, create, load, save
from fastsnn_core.testing import conformance
from fastsnn_exporter_w8a import W8a

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
    assert {t.dtype for n, t in stored.items() if n.endswith("scale")} == {torch.bfloat16}
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


def test_what_has_no_integer_form_says_so():
    assert W8a().unsupported(nn.Linear(2, 2)) == ["Linear has no integer form; the decoder has one"]


def test_parts_without_an_exact_form_are_named(tmp_path, caplog):
    model = build(create("model", "decoder", d_model=16, n_layers=1, n_heads=2, vocab_size=17)).eval()
    model.layers[0].feedforward.extra = nn.GELU()
    W8a().export(model, tmp_path / "x.snn")
    assert "layers.0.feedforward.extra (GELU)" in caplog.text
