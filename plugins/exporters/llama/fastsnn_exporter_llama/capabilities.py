"""``fastsnn show llama``: which decoders are ordinary Hugging Face models without their spikes, by writing them."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastsnn_console.tables import capability_rows, compared, markdown_table
from fastsnn_core import Model, build
from fastsnn_core.spec import converter

SOFTMAX, WINDOW = {"kind": "softmax"}, {"kind": "sliding_window", "window": 3}
ALL = ["attn_in", "attn_out", "ffn_in", "ffn_hidden", "k"]
BIASES = {"qkv_bias": True, "out_bias": True, "feedforward": {"kind": "pulse", "bias": True}}
CASES: dict[str, dict[str, Any]] = {
    "Llama: softmax, tied or not": {"tied": False},
    "Llama: grouped heads, balanced sites, biases": {"n_kv_heads": 2, "centred": ALL} | BIASES,
    "Mistral: sliding window": {"attention": [WINDOW]},
    "Qwen2: biases of q, k, v": {"qkv_bias": True},
    "Qwen3: norms of q and k, some windows": {"qk_norm": True, "attention": [SOFTMAX, WINDOW]},
    "rope scaling: linear": {"rope": {"scaling": "linear", "factor": 2.0}},
    "rope scaling: yarn": {"rope": {"scaling": "yarn", "factor": 4.0, "original": 64}},
    "rope scaling: llama3": {"rope": {"scaling": "llama3", "factor": 8.0, "original": 64}},
    "attention gla": {"attention": [{"kind": "gla"}]},
    "attention linear": {"attention": [{"kind": "linear"}]},
    "windows of different sizes": {"attention": [WINDOW, WINDOW | {"window": 4}]},
    "LayerNorm": {"norm": "layer"},
    "feedforward without a gate": {"feedforward": {"kind": "pulse", "gated": False}},
    "gates with a threshold": {"feedforward": {"kind": "pulse", "gate_threshold": 0.1}},
    "bias of the logits": {"head_bias": True},
    "learned positions": {"learned_positions": 16},
    "balanced query sites": {"sites": ["q"], "centred": ["q"]},
    "INT8 weights": {"quant": {"bits": 8}},
    "4-bit weights": {"quant": {"bits": 4}},
}


@torch.no_grad()
def judged_llama(fields: dict[str, Any]) -> tuple[str, str]:
    """``(verdict, note)`` of a small decoder: its logits without spikes against those of the written directory."""
    from fastsnn_exporter_llama import Llama
    from fastsnn_integer.quantization import Quant, quantise

    fields = dict[str, Any](vocab_size=37, d_model=24, n_layers=2, n_heads=4, attention=[SOFTMAX]) | fields
    quant: Any = fields.pop("quant", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = build(converter().structure({"kind": "decoder"} | fields, Model)).eval()
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model = model if quant is None else quantise(model, Quant(**quant))
    exporter = Llama()
    if reasons := exporter.unsupported(model):
        return "refused", reasons[0]
    tokens = torch.arange(18).reshape(2, 9)
    with tempfile.TemporaryDirectory() as folder:
        exporter.export(model, Path(folder, "dense"))
        return compared(exporter.load(Path(folder, "dense"))(tokens), exporter.expected(model)(tokens), 1e-4, "logits")


def llama_table() -> list[dict[str, str]]:
    """A row for every kind of decoder."""
    return capability_rows("writing", {name: partial(judged_llama, fields) for name, fields in CASES.items()})


def show_llama(bundle: str | None = None) -> tuple[Any, str]:
    """What a dense Llama form can say; of a bundle, whether it can be written, and what stands in the way."""
    if bundle is not None:
        from fastsnn_core import load
        from fastsnn_exporter_llama import Llama

        reasons = Llama().unsupported(load(bundle))
        return {"refused": reasons}, "\n".join(reasons) or "it can be written: fastsnn export BUNDLE OUT --to llama"
    rows = llama_table()
    return rows, markdown_table(rows)
