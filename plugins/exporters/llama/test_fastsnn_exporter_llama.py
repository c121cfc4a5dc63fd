"""What the dense form computes is what the original computed; what a Llama cannot say is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs
import pytest
import torch

from fastsnn_convert import convert
from fastsnn_convert.language.families import import_dense
from fastsnn_core import Model, load
from fastsnn_core.errors import FileError
from fastsnn_core.spec import converter
from fastsnn_core.testing import conformance
from fastsnn_exporter_llama import Llama, capabilities, config
from fastsnn_integer.quantization import Quant, quantise

DATA = Path(os.environ.get("FASTSNN_DATA", Path(__file__).resolve().parents[3] / ".." / "shared" / "data"))
STORIES = DATA / "stories260k" / "hf"
SMOLLM = Path(os.environ.get("FASTSNN_DATA_CACHE") or Path.home() / ".cache/fastsnn/smollm2") / "hf"
stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"no stories260k at {STORIES}")

test_llama = conformance("llama")


def network(seed=0, **fields):
    torch.manual_seed(seed)
    table = {
        "kind": "decoder",
        "vocab_size": 37,
        "d_model": 24,
        "n_layers": 2,
        "n_heads": 4,
        "attention": [{"kind": "softmax"}],
    }
    model = converter().structure(table | fields, Model).build().eval()
    model.spec = converter().structure(table | fields, Model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tied": False, "n_kv_heads": 2, "head_dim": 6, "centred": ["attn_in", "attn_out", "ffn_in", "ffn_hidden", "k"],
         "qkv_bias": True, "out_bias": True, "feedforward": {"kind": "pulse", "bias": True}},
        {"qk_norm": True, "attention": [{"kind": "softmax"}, {"kind": "sliding_window", "window": 3}]},
        {"qkv_bias": True, "attention": [{"kind": "softmax"}, {"kind": "sliding_window", "window": 3}]},
        {"attention": [{"kind": "sliding_window", "window": 4}]},
        {"sites": ["v", "k"], "centred": ["v", "k"], "n_kv_heads": 2, "out_bias": True},
        {"rope": {"scaling": "yarn", "factor": 4.0, "original": 64}},
        {"rope": {"scaling": "llama3", "factor": 8.0, "original": 64}},
        {"rope": {"scaling": "linear", "factor": 2.0}},
    ],
    ids=["llama", "centred", "qwen3", "qwen2", "mistral", "values", "yarn", "llama3", "linear"],
)  # fmt: skip
def test_transformers_and_our_reader_compute_the_model_without_spikes(fields, tmp_path):
    model, exporter = network(**fields), Llama()
    assert exporter.unsupported(model) == []
    exporter.export(model, tmp_path / "dense")
    tokens = torch.randint(0, 37, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = exporter.expected(model)(tokens)
        torch.testing.assert_close(exporter.load(tmp_path / "dense")(tokens), wanted, rtol=0, atol=1e-4)
        auto = pytest.importorskip("transformers").AutoModelForCausalLM
        theirs = auto.from_pretrained(tmp_path / "dense", attn_implementation="eager", dtype=torch.float32)
        torch.testing.assert_close(theirs(tokens).logits, wanted, rtol=0, atol=1e-4)


@stories
def test_a_converted_llama_gives_its_original_back(tmp_path):
    convert(STORIES, steps=4, windows=2, window=64, measure=False, quiet=True, to=tmp_path / "s.snn")
    model = load(tmp_path / "s.snn")
    assert model.spec.centred, "balancing centres nothing: this test would be of no use"
    Llama().export(model, tmp_path / "dense")
    table = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert (table["attention_bias"], table["mlp_bias"]) == (False, False), "biases that cancel are left out"
    tokens = torch.randint(3, 512, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = import_dense(STORIES)(tokens)
        torch.testing.assert_close(import_dense(tmp_path / "dense")(tokens), wanted, rtol=0, atol=1e-4)
        assert not torch.allclose(model(tokens), wanted, atol=1e-2), "the spikes were off all along"
    transformers = pytest.importorskip("transformers")
    ids = [
        transformers.AutoTokenizer.from_pretrained(p)("Once upon a time").input_ids
        for p in (STORIES, tmp_path / "dense")
    ]
    assert ids[0] == ids[1]


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM.is_dir(), reason=f"no SmolLM2 at {SMOLLM}: python shared/tools/smollm2.py --hf")
def test_a_real_model_comes_back(tmp_path):
    convert(SMOLLM, k=3.0, windows=2, window=128, measure=False, quiet=True, to=tmp_path / "s.snn")
    Llama().export(load(tmp_path / "s.snn"), tmp_path / "dense")
    tokens = torch.randint(3, 49000, (1, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = import_dense(SMOLLM)(tokens)
        found = import_dense(tmp_path / "dense")(tokens)
    assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_what_a_llama_cannot_say_is_refused_by_name(tmp_path):
    rows = [
        ({"attention": [{"kind": "gla"}]}, "gla"),
        ({"norm": "layer"}, "layer"),
        ({"feedforward": {"kind": "pulse", "gated": False}}, "gate"),
        ({"feedforward": {"kind": "pulse", "gate_threshold": 0.1}}, "threshold"),
        ({"head_bias": True}, "bias of the logits"),
        ({"learned_positions": 16}, "learned positions"),
        ({"attention": [{"kind": "sliding_window", "window": 3}, {"kind": "sliding_window", "window": 4}]}, "3, 4"),
        ({"attention": [{"kind": "sliding_window", "window": 3}], "out_bias": True}, "output"),
        ({"sites": ["q"], "centred": ["q"]}, "centred sites q"),
    ]
    for fields, why in rows:
        (reason,) = Llama().unsupported(network(**fields))
        assert why in reason, fields
    assert "8 bits" in Llama().unsupported(quantise(network(), Quant()))[0]
    assert "no decoder" in Llama().unsupported(torch.nn.Linear(2, 2))[0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileError, match="left alone"):
        Llama().export(network(), tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_the_table_of_show_is_found_by_writing_and_in_the_page():
    rows, text = capabilities.show_llama()
    assert [r["verdict"] for r in rows] == ["exact"] * 8 + ["refused"] * 11
    page = Path(__file__).resolve().parents[3] / "docs" / "interop.md"
    assert text in page.read_text(encoding="utf-8"), "docs/interop.md has another table:\n" + text


def test_names_and_types_are_those_asked_for(tmp_path):
    model = network()
    Llama(dtype="bfloat16").export(model, tmp_path / "d")
    again = import_dense(tmp_path / "d", dtype=None)
    assert again.embed.weight.dtype == torch.bfloat16
    Llama().export(model, tmp_path / "d")  # a directory of ours is replaced
    assert import_dense(tmp_path / "d", dtype=None).embed.weight.dtype == torch.float32
    assert config.family(attrs.evolve(model.spec, qk_norm=True)) == "qwen3"
