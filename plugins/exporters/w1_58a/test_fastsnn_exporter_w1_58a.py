"""The conformance kit over this plugin; a model trained ternary is the bundle's, to the bit; refusals; bits; sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fastsnn_core import build, create, load, save
from fastsnn_core.errors import FastSNNError
from fastsnn_core.testing import conformance
from fastsnn_exporter_w1_58a import W158a
from fastsnn_integer.quantization import Quant, quantise
from fastsnn_integer.ternary import (
    PackedTernary,
    TernaryLinear,
    absmean,
    found_ternary,
    pack_ternary,
    project_ternary_naive,
    rounding_loss,
    unpack_ternary,
)
from fastsnn_integer.testing import check_batch_invariance, check_event

test_w158a = conformance("w1.58a")


def folder_size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def ternary_decoder(**changes):
    torch.manual_seed(0)
    shape = {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 61, "weights": "ternary"}
    model = build(create("model", "decoder", **shape | changes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("tall", [1, 4, 7, 130])
def test_codes_come_back(tall):
    codes = torch.randint(-1, 2, (tall, 33))
    assert torch.equal(unpack_ternary(pack_ternary(codes), tall).T, codes.to(torch.int8))
    counts = torch.randint(-9, 10, (3, 33)).float()
    scale = torch.rand(tall) + 0.1
    wanted = (counts.double() @ codes.double().T).float() * scale
    assert torch.equal(project_ternary_naive(counts, pack_ternary(codes), scale), wanted)


def test_what_is_ternary_is_found_and_nothing_else():
    codes = torch.randint(-1, 2, (9, 40)).float()
    codes[4] = 0
    scale = torch.rand(9, 1) + 0.1
    found = found_ternary(codes * scale)
    assert found is not None
    assert torch.equal(found[0].float() * found[1][:, None], codes * scale)
    assert found[1][4] == 1.0
    off = codes * scale
    off[3, 3] = torch.nextafter(scale[3, 0], torch.tensor(9.0))
    assert found_ternary(off) is None
    w = torch.randn(50, 60)
    made, s = absmean(w)  # Ma et al. 2024, equations 1 to 3
    assert torch.equal(made, (w / w.abs().mean()).round().clamp(-1, 1))
    assert rounding_loss(w) == pytest.approx(float((w - made * s).norm() / w.norm()))
    assert rounding_loss(made * s) == 0.0


def test_the_gradient_goes_through_as_if_nothing_was_rounded():
    torch.manual_seed(0)
    layer, x = TernaryLinear(12, 7), torch.randn(5, 12)
    y = layer(x)
    assert len(layer.rounded().detach().unique()) == 3
    assert torch.equal(y, nn.functional.linear(x, layer.plain().weight, layer.bias))
    (y * torch.arange(7)).sum().backward()
    plain = nn.Linear(12, 7)
    (plain(x) * torch.arange(7)).sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)


def test_a_bundle_computes_what_was_trained(tmp_path):
    model = ternary_decoder(sites=(), attention=(create("attention", "softmax"),))
    small = load(W158a().export(model, tmp_path / "m.snn"))
    layers = dict(model.named_modules())
    kinds = {name: m for name, m in small.named_modules() if isinstance(m, PackedTernary)}
    assert len(kinds) == 14
    for name, layer in kinds.items():
        assert torch.equal(layer.decoded(), layers[name].plain().weight), name
    tokens = torch.randint(0, 61, (2, 11))
    with torch.no_grad():  # INT8 embedding and head, counts of 8 bits
        pair = torch.stack([small(tokens).flatten(), model(tokens).flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.999
    eight = quantise(model, Quant())  # the same weights in INT8: trained ones are not rounded from what they are not
    assert torch.corrcoef(torch.stack([eight(tokens).flatten(), pair[1]]))[0, 1] > 0.999


@pytest.mark.parametrize("table_bits", [4, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_bits_depend_on_nobody(tied, table_bits, tmp_path):
    """Batch = alone = pieces = event = after loading; odd numbers of outputs; GLA and windows."""
    model = ternary_decoder(tied=tied, d_ff=83, d_model=48)
    small = load(W158a(table_bits=table_bits).export(model, tmp_path / "m.snn"))
    save(small, tmp_path / "again.snn")
    name = "weights.safetensors"
    assert (tmp_path / "again.snn" / name).read_bytes() == (tmp_path / "m.snn" / name).read_bytes()
    tokens = torch.randint(0, 61, (3, 9))
    check_batch_invariance(small, tokens, "w1.58a", [2, 4, 3], (2, 5))
    for coder in ("bitwise", "ternary"):
        check_event(small, tokens, "w1.58a", create("coder", coder), "auto")


def test_a_twelfth_of_the_size(tmp_path):
    model = ternary_decoder(d_model=256, n_layers=4, n_heads=4, vocab_size=300)
    small = W158a(table_bits=4).export(model, tmp_path / "small.snn")
    assert folder_size(small) <= folder_size(save(model, tmp_path / "large.snn")) / 12


def test_weights_that_are_not_ternary_are_refused_and_rounded_only_when_asked(caplog):
    model = ternary_decoder(weights="float", attention=(create("attention", "softmax"),))
    with pytest.raises(
        FastSNNError, match=r"14 of 14 layers .* not -1, 0 and 1 .* by \d+%.*weights = .ternary.*round=true"
    ):
        W158a().expected(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    small = W158a(round=True).expected(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert "14 of 14 layers were rounded" in caplog.text
    done = small.meta["milestones"][-1]
    assert (done["layers"], done["exact"]) == (14, 0)
    assert 0.3 < done["loss"] < 0.7
    layer = small.layers[0].attention.q
    codes, scale = absmean(model.layers[0].attention.q.weight)
    assert torch.equal(layer.decoded(), codes * scale)
    with torch.no_grad():
        for part in model.layers.modules():
            if isinstance(part, nn.Linear):
                part.weight.copy_(torch.randint(-1, 2, part.weight.shape) * 0.25)
    assert W158a(round=True).expected(model).meta["milestones"][-1]["exact"] == 14
    W158a().expected(model)


def test_what_cannot_be_said_is_refused():
    assert W158a().unsupported(nn.Linear(2, 2)) == [
        "Linear has no integer form; decoder, sequential and graph have one"
    ]
    model = ternary_decoder()
    assert W158a().unsupported(W158a().expected(model)) == ["its weights have 2 bits already"]
    model.layers[0].attention.q.weight.data[0, 0] = float("nan")
    with pytest.raises(FastSNNError, match="finite"):
        W158a().expected(model)
    with pytest.raises(FastSNNError, match="group must be 0"):
        Quant(bits=2, group=32)
