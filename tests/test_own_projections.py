"""Attentions that read some of q, k and v or have spike sites of their own; head bias and LayerNorm."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest
import torch

from fastsnn import FastSNN
from fastsnn_core import build, create, hookimpl, load, ops
from fastsnn_core.heads import Dims
from fastsnn_core.plugins import add_module, registry
from fastsnn_core.probe import probe
from fastsnn_core.testing.conformance import CHECKS, cases
from fastsnn_integer.lowering_checks import check_attention
from fastsnn_kit import checks

DOCS = Path(__file__).resolve().parents[1] / "docs" / "reference.md"


@pytest.fixture(scope="module")
def recurrent():
    """The attention that docs/reference.md shows."""
    code = next(c for c in re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.S) if "Recurrent" in c)
    space = {}
    exec(code, space)
    kind = space["Recurrent"]
    add_module(types.SimpleNamespace(fastsnn_attentions=hookimpl(lambda: [kind])), "documented")
    yield kind
    registry().forget("documented", "documented")


def decoder(attention, **changes):
    torch.manual_seed(0)
    spec = create("model", "decoder", d_model=16, n_layers=2, n_heads=2, vocab_size=37, attention=attention, **changes)
    return build(spec).eval()


def test_what_is_not_read_is_not_computed(recurrent):
    model = decoder((recurrent(),), qk_norm=True, qkv_bias=True, sites=("attn_in", "attn_out", "q", "k", "v"))
    names = {name for name, _ in model.layers[0].attention.named_parameters()}
    assert {"v.weight", "v.bias", "mixer.gate.weight"} <= names
    assert not [name for name in names if name.startswith(("q", "k"))]
    with probe(model) as trace:
        model(torch.zeros(1, 5, dtype=torch.long))
    sites = {name.removeprefix("layers.0.attention.") for name in trace if name.startswith("layers.0.attention")}
    assert sites == {"inner", "outer", "v_site", "mixer.site"}


def test_both_sorts_side_by_side(recurrent):
    hybrid = create("attention", "hybrid", branches=(recurrent(), create("attention", "softmax")))
    assert hybrid.projections == ("q", "k", "v")
    alone = create("attention", "hybrid", branches=(recurrent(), recurrent()))
    assert alone.projections == ("v",)
    for attention in (hybrid, alone):
        model = decoder((attention,))
        x = torch.randint(0, 37, (2, 9))
        assert model(x).shape == (2, 9, 37)


@pytest.mark.parametrize("changes", [{}, {"quant": {"bits": 8}}, {"norm": "layer", "head_bias": True}], ids=str)
def test_such_a_decoder_keeps_every_promise(recurrent, changes, tmp_path):
    quant = changes.pop("quant", None)
    model = decoder((recurrent(), create("attention", "gla")), **changes)
    path = FastSNN.export(model, tmp_path / "m.snn", to="w8a" if quant else "snn")
    model = load(path)
    x = torch.randint(0, 37, (2, 40), generator=torch.Generator().manual_seed(0))
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[1, 11] = True
    with torch.no_grad():
        whole = model(x, reset=reset)
        first, state = model(x[:, :7], reset=reset[:, :7], return_state=True)
        rest = model(x[:, 7:], state, reset=reset[:, 7:])
        model.runtime("event", calibration=x)
        event = model(x, reset=reset)
    if quant:
        assert torch.equal(torch.cat([first, rest], 1), whole)
        assert torch.equal(event, whole)
    else:
        torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=2e-2, rtol=0)
        torch.testing.assert_close(event, whole)


def test_the_kit_takes_them(recurrent):
    for name, cls, what in cases("documented"):
        if what != "documented":  # its parameters have no docs: it has none
            CHECKS[cls.kind][what](name, cls)


def test_the_kit_takes_a_hybrid_of_them(recurrent):
    hybrid = create("attention", "hybrid", branches=(recurrent(), create("attention", "softmax")))
    mixer, run = checks.attention_run(hybrid, Dims(8, 4, 2, 4))
    x = checks.sweep(2, 7, 8)
    assert run(x, None, None)[0].shape == (2, 7, 4, 8)
    checks.check_streaming(run, x, [3, 4], "hybrid")
    checks.check_reset(run, x, 4, "hybrid")
    checks.check_gradients(mixer, run, x, "hybrid")
    check_attention(hybrid, None)


def test_what_a_notebook_files_twice_is_replaced_and_can_be_taken_out(recurrent):
    before = {kind: {k: list(v) for k, v in table.items()} for kind, table in registry().components.items()}
    module = types.SimpleNamespace(fastsnn_attentions=hookimpl(lambda: [recurrent]))
    for _ in range(2):
        add_module(module, "again")
    assert [p for p, _ in registry().components["attention"]["recurrent"]] == ["documented", "again"]
    registry().forget("again", "again")
    assert registry().components == before


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_head_bias_and_layer_norm_in_integers_are_fused_or_say_why(tied, norm, tmp_path):
    model = decoder((create("attention", "gla"), create("attention", "softmax")), tied=tied, norm=norm, head_bias=True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bias" in name or "norm" in name:
                p.add_(torch.randn_like(p) * 0.5)
    bias = model.tied_bias if tied else model.head.bias
    x = torch.randint(0, 37, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x)
        bias.add_(1.0)
        torch.testing.assert_close(model(x), y + 1.0)
        assert type(model.norm).__name__ == {"rms": "RMSNorm", "layer": "LayerNorm"}[norm]
        small = load(FastSNN.export(model, tmp_path / "m.snn", to="w8a"))
        wanted = torch.cat([small(row[None]) for row in x])
        assert torch.equal(small(x), wanted)
        with ops.use("naive"):
            assert torch.equal(small(x), wanted)
        assert torch.equal(small.runtime("event")(x), wanted)
        small.runtime("count")
        _, state = small(x[:1, :8], return_state=True)
        stream = small.fast(state)
        if stream is None:
            assert norm == "layer" or small.fast_step["why"], small.fast_step
        else:
            for t in range(8, 16):
                assert torch.equal(stream.step(int(x[0, t])), wanted[0, t])
    with torch.no_grad():
        assert float((small(x) - model(x)).norm() / model(x).norm()) < 0.3


@pytest.mark.parametrize("fault", ["bias", "mean"])
def test_a_planted_fault_is_seen(fault, monkeypatch, tmp_path):
    """A head bias that the fused step forgets; a mean that is not taken off."""
    from fastsnn_integer import quantization
    from fastsnn_model_decoder import DecoderModule

    if fault == "bias":
        pytest.importorskip("fastsnn_kernel_numba")
        monkeypatch.setattr(DecoderModule, "lower_head", lambda self: self.embed.lower())
    else:
        monkeypatch.setattr(quantization.RowLayerNorm, "forward", quantization.RowNorm.forward)
    with pytest.raises(AssertionError):
        test_head_bias_and_layer_norm_in_integers_are_fused_or_say_why(
            True, "rms" if fault == "bias" else "layer", tmp_path
        )
