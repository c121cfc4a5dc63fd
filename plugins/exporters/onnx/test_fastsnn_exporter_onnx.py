"""What ONNX Runtime computes is what the model does: whole, in pieces, for any number of streams; or it is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsnn_console.tables import markdown_table
from fastsnn_core import Model, build, load
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spec import converter
from fastsnn_core.state import StateError, leaves
from fastsnn_core.testing import conformance
from fastsnn_exporter_onnx import Onnx, capabilities, graph, int8
from fastsnn_exporter_onnx.runtime import OnnxNetwork
from fastsnn_integer.quantization import Int8Weights

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


@pytest.mark.parametrize("kind", [{"kind": "linear"}, {"kind": "linear", "decay": 0.1}, {"kind": "gla"}], ids=str)
def test_linear_attention_as_the_runtimes_operator_or_as_scan(kind, tmp_path):
    import onnx

    model, x = network(attention=[kind], n_kv_heads=2, n_layers=1), torch.randint(0, 37, (3, 40))
    wanted = model(x)
    for written, domain in (("scan", ""), ("com.microsoft", "com.microsoft")):
        path = Onnx(linear_attention=written).export(model, tmp_path / f"{written}.onnx")
        domains = {node.op_type: node.domain for node in onnx.load(path).graph.node}
        assert domains.get("LinearAttention") == (domain or None)
        assert ("Scan" in domains) == (written == "scan")
        again = Onnx().load(path)
        first, state = again(x[:, :23], return_state=True)
        torch.testing.assert_close(torch.cat([first, again(x[:, 23:], state)], 1), wanted, atol=1e-5, rtol=1e-5)


def test_a_runtime_without_the_operator_is_said(tmp_path, monkeypatch, caplog):
    import onnxruntime

    from fastsnn_exporter_onnx import linear_attention

    def missing(*_, **__):
        raise RuntimeError("no such operator")

    assert linear_attention.runtime_has_operator()
    linear_attention.runtime_has_operator.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", missing)
        assert not linear_attention.runtime_has_operator()
    model = network(attention=[{"kind": "gla"}], n_layers=1)
    with pytest.raises(FastSNNError, match="linear_attention = scan"):
        Onnx(linear_attention="com.microsoft").export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    with caplog.at_level("WARNING", "fastsnn"):
        Onnx().export(model, tmp_path / "m.onnx")
    assert "Scan" in caplog.text
    linear_attention.runtime_has_operator.cache_clear()


def test_a_graph_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    """Planted: the state is dropped on the way into the file."""
    forward = graph.WithState.forward
    monkeypatch.setattr(graph.WithState, "forward", lambda self, x, past: (forward(self, x, past)[0] * 1.01, past))
    with pytest.raises(FastSNNError, match=r"differ by|is \["):
        Onnx().export(network(attention=[{"kind": "softmax"}], n_layers=1), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_or_read_is_refused(tmp_path):
    from fastsnn_integer.quantization import Quant, quantise

    small = network(attention=[{"kind": "softmax"}], n_layers=1)
    assert "float bundle" in Onnx().unsupported(quantise(small, Quant(bits=4)))[0]
    assert "group = 0" in Onnx().unsupported(quantise(small, Quant(group=8)))[0]
    assert "kv = false" in Onnx().unsupported(quantise(small, Quant(kv=True)))[0]
    layers = [{"op": "linear", "size": 4, "bits": 8}]
    over_time = build(converter().structure({"kind": "sequential", "input": [3], "layers": layers}, Model))
    assert "INT8 weights of a network over time" in Onnx().unsupported(over_time)[0]
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
def test_int8_weights_stay_int8_and_sums_exact(tmp_path):
    """A W8A model: every matrix in the file in INT8, the same logits, the same greedy text."""
    import onnx

    from fastsnn_integer.quantization import Quant, quantise

    model = network(attention=[{"kind": "softmax"}], n_layers=1, vocab_size=256, d_model=64)
    quant = quantise(model, Quant())
    again = Onnx().load(Onnx().export(quant, tmp_path / "q.onnx"))
    held = {i.name: i for i in onnx.load(tmp_path / "q.onnx").graph.initializer}
    stored = sum(np.prod(i.dims) for i in held.values() if i.data_type == onnx.TensorProto.INT8)
    assert stored == sum(m.weight.numel() for m in quant.modules() if isinstance(m, Int8Weights))
    assert not any(i.data_type == onnx.TensorProto.FLOAT and np.prod(i.dims) > 4096 for i in held.values())
    x, texts = torch.randint(0, 256, (2, 7)), []
    torch.testing.assert_close(again(x), quant(x), atol=1e-5, rtol=1e-5)
    for net in (quant, again):
        state, tokens, said = None, x, []
        for _ in range(12):
            y, state = net(tokens, state, return_state=True)
            tokens = y[:, -1:].argmax(-1)
            said.append(tokens)
        texts.append(torch.cat(said, 1))
    assert torch.equal(*texts)


def product(path, weight):
    """A file that multiplies by a matrix, with the metadata of ours."""
    import onnx
    from onnx import helper, numpy_helper

    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, None]) for n in ("input", "output"))
    held = numpy_helper.from_array(weight, "w")
    made = helper.make_graph([helper.make_node("MatMul", ["input", "w"], ["output"])], "g", [x], [y], [held])
    model = helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    helper.set_model_props(model, {graph.STATE: "[]"})
    onnx.save(model, path)
    return model


def test_a_file_whose_external_data_is_missing_says_so(tmp_path):
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data

    name = tmp_path / "m.onnx"
    model = product(name, np.ones((40, 40), dtype=np.float32))
    convert_model_to_external_data(model, location="m.data", size_threshold=64)
    onnx.save(model, name)
    assert (tmp_path / "m.data").is_file()
    OnnxNetwork(name)
    (tmp_path / "m.data").unlink()
    with pytest.raises(FastSNNError, match=r"m\.onnx cannot be run by ONNX Runtime.*m\.data"):
        OnnxNetwork(name)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_whole_numbers_are_stored_in_int8_and_come_out_the_same(tmp_path):
    import onnx

    rng = np.random.default_rng(0)
    whole = rng.integers(-127, 128, (40, 40)).astype(np.float32)
    x = torch.from_numpy(rng.normal(size=(3, 40)).astype(np.float32))
    for weight, kind in ((whole, "INT8"), (whole + 0.5, "FLOAT"), (whole * 2, "FLOAT")):
        product(tmp_path / "p.onnx", weight)
        wanted = OnnxNetwork(tmp_path / "p.onnx")(x)
        assert int8.store_as_int8(tmp_path / "p.onnx") == (kind == "INT8")
        largest = max(onnx.load(tmp_path / "p.onnx").graph.initializer, key=lambda i: np.prod(i.dims or [1]))
        assert largest.data_type == getattr(onnx.TensorProto, kind)
        assert torch.equal(OnnxNetwork(tmp_path / "p.onnx")(x), wanted)


@pytest.mark.parametrize("tied", [True, False])
def test_the_form_that_is_written_of_a_w8a_model_is_the_model(tied):
    from fastsnn_integer.quantization import Quant, quantise

    quant = quantise(network(attention=[{"kind": "softmax"}, {"kind": "linear"}], tied=tied), Quant())
    made, x = int8.written_as_floats(quant), torch.randint(0, 37, (3, 11))
    assert not any(isinstance(m, Int8Weights) and type(m) is not int8.CodedEmbedding for m in made.modules())
    torch.testing.assert_close(made(x), quant(x), atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no stories260k at {STORIES}")
@pytest.mark.parametrize("whole", [False, True], ids=["float", "int8"])
def test_greedy_text_of_a_converted_model_is_ours(whole, tmp_path):
    from fastsnn_convert import convert
    from fastsnn_core import save
    from fastsnn_integer.quantization import Quant, quantise
    from fastsnn_text import tokenizer_of

    model = convert(
        STORIES, k=3.0, measure=False, balance=False, calibration=["Once upon a time there was a cat."]
    ).model
    model = load(save(model, tmp_path / "s.snn"))
    model = quantise(model, Quant()) if whole else model
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


def refusals():
    return [
        name for name in capabilities.CASES if capabilities.CASES[name].get("quant", {}) or "without a spec" in name
    ]


@pytest.mark.parametrize("only", [refusals(), pytest.param(None, marks=pytest.mark.slow)], ids=["refused", "all"])
def test_the_table_of_show_is_found_by_writing_and_in_the_page(only):
    rows = capabilities.onnx_table(only)
    assert {r["verdict"] for r in rows if r["what"] in refusals()} == {"refused"}
    page = (Path(__file__).resolve().parents[3] / "docs" / "interop.md").read_text(encoding="utf-8")
    for row in markdown_table(rows).splitlines():
        assert row in page, "docs/interop.md has another row: " + row


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
def test_torchs_compiled_package_computes_the_same(tmp_path):
    """`torch.export` with an open T, compiled ahead of time into one file, loaded and run token by token."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    model = network(attention=[{"kind": "softmax"}], n_layers=1)
    program = graph.exported(model)[0]
    package = aoti_load_package(aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2")))
    x = torch.randint(0, 37, (2, 9))
    wanted = model(x)
    _, begun = model(x[:, :5], return_state=True)
    y, _ = package(x[:, 5:].contiguous(), [t.contiguous() for _, t in leaves(begun)])
    torch.testing.assert_close(y, wanted[:, 5:], atol=1e-5, rtol=1e-5)
