"""``fastsnn show onnx``: what goes into ONNX, found by writing small models and running them in ONNX Runtime."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastsnn_console.tables import capability_rows, markdown_table
from fastsnn_core import Model, build
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spec import converter

SOFTMAX = [{"kind": "softmax"}]
LINEAR = [{"kind": "linear", "decay": 0.1}]
CASES: dict[str, dict[str, Any]] = {
    "softmax, adaptive_threshold": {"attention": SOFTMAX},
    "sliding window, lif_sint": {
        "attention": [{"kind": "sliding_window", "window": 3}], "neuron": {"kind": "lif_sint"},
    },
    "linear attention, as Scan": {"attention": LINEAR, "written": "scan"},
    "linear attention, as com.microsoft.LinearAttention": {"attention": LINEAR, "written": "com.microsoft"},
    "gla, as Scan": {"attention": [{"kind": "gla"}], "written": "scan"},
    "gla, as com.microsoft.LinearAttention": {"attention": [{"kind": "gla"}], "written": "com.microsoft"},
    "dead zones, top, smallest thresholds": {
        "attention": SOFTMAX, "neuron": {"kind": "adaptive_threshold", "top": 5, "dead_zone": 0.7, "v_min": 0.05},
    },
    "synaptic": {"attention": SOFTMAX, "neuron": {"kind": "synaptic"}},
    "images over time: conv2d, alif, lif": {
        "kind": "sequential", "input": [1, 6, 6],
        "layers": [{"op": "conv2d", "size": 4, "kernel": [3]}, {"op": "spikes", "neuron": {"kind": "alif"}},
                   {"op": "spikes", "neuron": {"kind": "lif"}}, {"op": "flatten"}, {"op": "linear", "size": 5}],
    },
    "W8A: INT8 weights": {"attention": SOFTMAX, "quant": {}},
    "W8A with a scale per group": {"attention": SOFTMAX, "quant": {"group": 8}},
    "W8A with keys and values in INT8": {"attention": SOFTMAX, "quant": {"kv": True}},
    "W4A: 4-bit weights": {"attention": SOFTMAX, "quant": {"bits": 4}},
    "a module without a spec": {"kind": "module"},
}  # fmt: skip


@torch.no_grad()
def judged_onnx(fields: dict[str, Any]) -> tuple[str, str]:
    """``(verdict, note)`` of a small model."""
    from fastsnn_exporter_onnx import Onnx

    fields = dict(fields)
    exporter, quant = Onnx(linear_attention=fields.pop("written", "auto")), fields.pop("quant", None)
    if fields.get("kind") == "module":
        return "refused", exporter.unsupported(torch.nn.Linear(2, 2))[0]
    table = {"kind": "decoder"} | fields
    if table["kind"] == "decoder":
        table |= {"vocab_size": 37, "d_model": 24, "n_layers": 1, "n_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: Any = build(converter().structure(table, Model)).eval()
    if quant is not None:
        from fastsnn_integer.quantization import Quant, quantise

        model = quantise(model, Quant(**quant))
    if reasons := exporter.unsupported(model):
        return "refused", reasons[0]
    bound = exporter.tolerance if quant is None else exporter.int8_tolerance
    with tempfile.TemporaryDirectory() as folder:
        try:
            exporter.export(model, Path(folder, "m.onnx"))  # runs it beside the model, whole and in pieces
        except FastSNNError as error:
            return "refused", str(error)
    return (
        "exact" if quant is None else "approximate",
        f"run: within {bound:g} of the largest output, whole and in pieces",
    )


def onnx_table(only: list[str] | None = None) -> list[dict[str, str]]:
    """A row for every kind of model that was tried."""
    return capability_rows("writing", {name: partial(judged_onnx, fields) for name, fields in CASES.items()}, only)


def show_onnx(bundle: str | None = None) -> tuple[Any, str]:
    """What ONNX can say; of a bundle, what is known to stand in the way before it is written."""
    if bundle is not None:
        from fastsnn_core import load
        from fastsnn_exporter_onnx import Onnx

        reasons = Onnx().unsupported(load(bundle))
        text = (
            "\n".join(reasons)
            or "nothing stands in the way; the export runs it: fastsnn export BUNDLE OUT.onnx --to onnx"
        )
        return {"refused": reasons}, text
    rows = onnx_table()
    return rows, markdown_table(rows)
