"""What ONNX Runtime computes is what the model does: whole, in pieces, for any number of streams; or it is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fastsnn_core import Model, build, load
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spec import converter
from fastsnn_core.state import StateError
from fastsnn_core.testing import conformance
from fastsnn_exporter_onnx import Onnx, graph
from fastsnn_exporter_onnx.runtime import OnnxNetwork

DATA = Path(os.environ.get("FASTSNN_DATA", Path(__file__).resolve().parents[3] / ".." / "shared" / "data"))
STORIES = DATA / "stories260k" / "hf"

test_onnx = conformance("onnx")


def network(**fields):
    torch.manual_seed(3)
    table = {"kind": "decoder", "vocab_size": 37, "d_model": 24, "n_layers": 2, "n_heads": 4} | fields
    model = build(converter().structure(table, Model)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {"attention": [{"kind": "linear", "decay": 0.1}, {"kind": "sliding_window", "window": 3}], "n_kv_heads": 2,
         "neuron": {"kind": "lif_sint"}},
        pytest.param(
            {"attention": [{"kind": "gla"}, {"kind": "softmax"}], "neuron": {"kind": "adaptive_threshold"}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "attention": [{"kind": "softmax"}],
                "neuron": {"kind": "adaptive_threshold", "top": 5, "dead_zone": 0.7, "v_min": 0.05},
                "n_layers": 1,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"attention": [{"kind": "softmax"}], "neuron": {"kind": "synaptic"}, "n_layers": 1}, marks=pytest.mark.slow
        ),
    ],
    ids=["linear, window, lif_sint", "gla, softmax, adaptive_threshold", "tuned", "synaptic"],
)  # fmt: skip
def test_a_decoder_in_pieces(fields, tmp_path):
    """Export runs it itself; here by hand, token by token, with another number of streams."""
    model = network(**fields)
    again = Onnx().load(Onnx().export(model, tmp_path / "m.onnx"))
    x = torch.randint(0, 37, (4, 9))
    wanted, state, rows = model(x), None, []
    for t in range(9):
        y, state = again(x[:, t : t + 1], state, return_state=True)
        rows.append(y)
    torch.testing.assert_close(torch.cat(rows, 1), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again(x), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(StateError, match="4 streams"):
        again(x[:3], state)


def test_an_image_network_over_time(tmp_path):
    table = {
        "kind": "sequential",
        "input": [1, 6, 6],
        "layers": [{"op": "conv2d", "size": 4, "kernel": [3]}, {"op": "spikes", "neuron": {"kind": "alif"}},
                   {"op": "spikes", "neuron": {"kind": "lif"}},
                   {"op": "flatten"}, {"op": "linear", "size": 5}],
    }  # fmt: skip
    torch.manual_seed(0)
    model = build(converter().structure(table, Model)).eval()
    again = Onnx().load(Onnx().export(model, tmp_path / "m.onnx"))
    x = torch.rand(3, 11, 1, 6, 6)
    assert [r["name"] for r in again.rows]
    torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_graph_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    """Planted: the state is dropped on the way into the file."""
    forward = graph.WithState.forward
    monkeypatch.setattr(graph.WithState, "forward", lambda self, x, past: (forward(self, x, past)[0] * 1.01, past))
    with pytest.raises(FastSNNError, match=r"differ by|is \["):
        Onnx().export(network(attention=[{"kind": "softmax"}], n_layers=1), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_or_read_is_refused(tmp_path):
    from fastsnn_integer.quantization import Quant, quantise

    quant = quantise(network(attention=[{"kind": "softmax"}], n_layers=1), Quant())
    assert "float bundle" in Onnx().unsupported(quant)[0]
    (tmp_path / "a.onnx").write_bytes(b"not a graph")
    with pytest.raises(FastSNNError, match="cannot be run by ONNX Runtime"):
        OnnxNetwork(tmp_path / "a.onnx")
    with pytest.raises((FastSNNError, OSError)):
        OnnxNetwork(tmp_path / "none.onnx")
    import onnx

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    made = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "g", [value], [other])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(made, ir_version=10, opset_imports=opset), tmp_path / "b.onnx")
    with pytest.raises(FastSNNError, match="not written by fastsnn"):
        OnnxNetwork(tmp_path / "b.onnx")


@pytest.mark.slow
@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no stories260k at {STORIES}")
def test_greedy_text_of_a_converted_model_is_ours(tmp_path):
    from fastsnn_convert import convert
    from fastsnn_core import save
    from fastsnn_text import tokenizer_of

    model = convert(
        STORIES, k=3.0, measure=False, balance=False, calibration=["Once upon a time there was a cat."]
    ).model
    model = load(save(model, tmp_path / "s.snn"))
    again = Onnx().load(Onnx().export(model, tmp_path / "m.onnx"))
    prompt = torch.tensor([[1, *tokenizer_of(model).encode("Once upon a time")]])
    said = []
    for net in (model, again):
        x, state, ids = prompt, None, []
        for _ in range(40):
            y, state = net(x, state, return_state=True)
            x = y[:, -1:].argmax(-1)
            ids.append(int(x))
        said.append(ids)
    assert said[0] == said[1]
