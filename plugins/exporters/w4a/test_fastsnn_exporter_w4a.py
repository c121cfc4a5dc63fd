"""The conformance kit over this plugin; Q4_0 and Q4_1 found again exactly; calibrated rounding; bits; the twin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fastsnn_core import build, create, load, save
from fastsnn_core.errors import FastSNNError
from fastsnn_core.testing import conformance
from fastsnn_exporter_w4a import W4a, rounded
from fastsnn_integer import four_bits
from fastsnn_integer.four_bits import FourBits
from fastsnn_integer.quantization import Quant
from fastsnn_integer.testing import check_batch_invariance, check_event

test_w4a = conformance("w4a")


def size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def decoder(**changes):
    torch.manual_seed(0)
    shape = {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 61}
    model = build(create("model", "decoder", **shape | changes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def gguf_grid(weight, kind):
    """The numbers that a GGUF file of this kind holds of a matrix, by the gguf package itself."""
    quants = pytest.importorskip("gguf").quants
    types = pytest.importorskip("gguf").GGMLQuantizationType
    found = quants.dequantize(quants.quantize(weight.numpy(), types[kind]), types[kind])
    return torch.from_numpy(found.copy()).reshape(weight.shape)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0])
def test_what_a_gguf_holds_is_found_again_exactly(kind, spread):
    torch.manual_seed(1)
    weight = torch.randn(40, 96) * spread
    weight[3], weight[5, :32], weight[7, 40] = 0.0, 0.25, 9 * spread
    weight = gguf_grid(weight, kind)
    codes, d, m = four_bits.encode_four_bits(weight, 32, kind == "Q4_1")
    assert torch.equal(four_bits.decode_four_bits(codes, d, m, 32), weight)
    assert torch.equal(four_bits.unpack_codes(four_bits.pack_codes(codes), 40).T, codes)


@pytest.mark.parametrize(("kind", "minimum"), [("Q4_0", False), ("Q4_1", True)])
def test_a_model_on_the_grid_is_not_rounded_again(kind, minimum, tmp_path):
    model = decoder(tied=False, d_ff=96, attention=(create("attention", "softmax"),))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(gguf_grid(module.weight.detach(), kind))
    path = W4a(minimum=minimum, text=str(tmp_path / "none.txt")).export(model, tmp_path / "m.snn")  # nothing is left
    small, layers = load(path), dict(model.named_modules())
    for name, layer in small.named_modules():
        if isinstance(layer, FourBits):
            assert torch.equal(layer.decoded(), layers[name].weight), name
    done = small.meta["milestones"][-1]
    assert done["exact"] == done["layers"] > 10


@pytest.mark.parametrize("table_bits", [4, 8])
@pytest.mark.parametrize("minimum", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_bits_depend_on_nobody(tied, minimum, table_bits, tmp_path):
    """Batch = alone = pieces = event = after loading; odd numbers of outputs, a last group that is short."""
    model = decoder(tied=tied, d_ff=83, d_model=48)
    small = load(W4a(minimum=minimum, table_bits=table_bits).export(model, tmp_path / "m.snn"))
    save(small, tmp_path / "again.snn")
    name = "weights.safetensors"
    assert (tmp_path / "again.snn" / name).read_bytes() == (tmp_path / "m.snn" / name).read_bytes()
    tokens = torch.randint(0, 61, (3, 9))
    check_batch_invariance(small, tokens, "w4a", [2, 4, 3], (2, 5))
    for coder in ("bitwise", "ternary"):
        check_event(small, tokens, "w4a", create("coder", coder), "auto")
    with torch.no_grad():
        pair = torch.stack([small(tokens).flatten(), model(tokens).flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.9


def test_a_seventh_of_the_size(tmp_path):
    model = build(create("model", "decoder", d_model=256, n_layers=4, n_heads=4, vocab_size=1000)).eval()
    small = W4a(group=64, table_bits=4).export(model, tmp_path / "small.snn")
    assert size(small) <= 0.16 * size(save(model, tmp_path / "large.snn"))


def test_calibrated_rounding_loses_less_of_what_the_inputs_see():
    torch.manual_seed(0)
    x = torch.randn(2000, 96) @ torch.randn(96, 96) * torch.logspace(1, -1, 96)
    weight = torch.randn(40, 96)
    wanted = x @ weight.T
    for minimum in (True, False):
        lost = []
        for made in (four_bits.encode_four_bits(weight, 32, minimum), rounded(weight, x.T @ x, 32, minimum)):
            lost.append(float((x @ four_bits.decode_four_bits(*made, 32).T - wanted).square().mean()))
        assert lost[1] < 0.5 * lost[0]
        silent = torch.zeros(96, 96)
        assert torch.isfinite(four_bits.decode_four_bits(*rounded(weight, silent, 32, minimum), 32)).all()


def test_calibration_reads_a_text(tmp_path):
    text = pytest.importorskip("fastsnn_text")
    model = decoder(vocab_size=257)
    text.attach(model, text.ByteTokenizer())
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time a spike met a threshold. " * 40)
    plain, calibrated = W4a().expected(model), W4a(text=str(path)).expected(model)
    changed = [
        not torch.equal(a.weight, b.weight)
        for a, b in zip(plain.modules(), calibrated.modules(), strict=True)
        if isinstance(a, four_bits.Linear4)
    ]
    assert changed
    assert all(changed)
    tokens = torch.tensor([list(b"Once upon a time a spike met")])
    with torch.no_grad():
        wanted = model(tokens).log_softmax(-1)
        far = [float((wanted.exp() * (wanted - m(tokens).log_softmax(-1))).sum(-1).mean()) for m in (plain, calibrated)]
    assert far[1] < far[0]
    with pytest.raises(FastSNNError, match="no file"):
        W4a(text=str(tmp_path / "none.txt")).expected(model)


def test_what_cannot_be_said_is_refused():
    assert W4a().unsupported(nn.Linear(2, 2)) == ["Linear has no integer form; decoder, sequential and graph have one"]
    model = decoder()
    assert W4a().unsupported(W4a().expected(model)) == ["its weights have 4 bits already"]
    model.layers[0].attention.q.weight.data[0, 0] = 1e6
    with pytest.raises(FastSNNError, match=r"attention\.q: weights must be finite and below 65504"):
        W4a().expected(model)
    with pytest.raises(FastSNNError, match="groups of 32, 64, 128"):
        Quant(bits=4, group=8)
