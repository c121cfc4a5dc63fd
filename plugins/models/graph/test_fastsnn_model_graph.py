"""The kit over this plugin; calls as text and back; what is refused is never evaluated."""

from __future__ import annotations

import re

import pytest
import torch

from fastsnn_core import build, create, spec
from fastsnn_core.testing import conformance
from fastsnn_model_graph import Graph, Input, Node, Ref, Step
from fastsnn_model_graph.text import FUNCTIONS, METHODS, CallError, arguments, call_text, parse_call
from fastsnn_model_sequential import Layer

test_graph = conformance("graph")

CALLS = [
    "add(x, y)",
    "x.view(-1, 8)",
    "cat((x, y), dim=1)",
    "cat([x, y])",
    "getitem(x, (slice(None, 3, None), 0, ..., None))",
    "getattr(x, 'shape')",
    "x.transpose(1, 2)",
    "zeros((2, 3), dtype=dtype('float32'))",
    "clamp(x, min=0.5, max=number('inf'))",
    "mul(x, -2.5)",
    "scaled_dot_product_attention(q, k, v, attn_mask=None, is_causal=True)",
    "getitem(x, (0,))",
]


@pytest.mark.parametrize("text", CALLS)
def test_a_call_reads_and_writes_the_same(text):
    step = parse_call(text, "n")
    assert call_text(step) == text
    assert call_text(parse_call(call_text(step), "n")) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__import__('os').system('true')", "no method 'system'"),
        ("eval('1')", "no function 'eval'"),
        ("x.__class__()", "no method '__class__'"),
        ("getattr(x, '__class__')", "attributes that may be read: T, device"),
        ("add(x, (lambda: 1)())", "is not understood"),
        ("add(x, [y for y in x])", "is not understood"),
        ("add(x, open('f'))", "is not understood"),
        ("add(x, **y)", "** is not understood"),
        ("add(x", "cannot be read"),
        ("x", "is no call"),
        ("add(x, 1j)", "is not understood"),
        ("add(x, dtype('quint8'))", "is not understood"),
    ],
)
def test_what_is_not_on_the_list_is_refused(text, says):
    with pytest.raises(CallError) as error:
        parse_call(text, "n")
    assert says in str(error.value)


def test_what_has_no_text_is_not_written():
    assert call_text(Step("n", "call", "erfinv", (Ref("x"),), function=torch.erfinv)) is None
    assert call_text(Step("n", "call", "tolist", (Ref("x"),), method=True)) is None
    assert call_text(Step("n", "call", "add", (Ref("x"), object()), function=FUNCTIONS["add"])) is None
    assert "__class__" not in METHODS
    assert not [name for name in METHODS if name.startswith("_")]
    with pytest.raises(CallError, match="a layer takes no keywords"):
        arguments("x, y=1")


def graph(*nodes: Node, output: str = "y", inputs: int = 1) -> Graph:
    names = "xz"[:inputs]
    return Graph(inputs=tuple(Input(name=n, shape=(4,)) for n in names), nodes=nodes, output=output)


LINEAR = Layer(op="linear", features=4, size=4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: graph(Node(name="y", call="add(x, later)")), "node 'y' uses 'later', which nothing before it makes"),
        (lambda: graph(Node(name="x", call="neg(x)")), "two nodes are called 'x'"),
        (lambda: graph(Node(name="a", call="neg(x)")), "output 'y' is no node"),
        (lambda: Node(name="y"), "node 'y' is one of layer, call and tensor"),
        (lambda: Node(name="y", call="neg(x)", tensor=(1,)), "is one of layer, call and tensor"),
        (lambda: Node(name="1y", call="neg(x)"), "needs a name that Python would accept"),
        (lambda: Node(name="y", layer=LINEAR, args="x", path="a..b"), "path 'a..b' is no dotted name"),
        (lambda: Graph(inputs=(), nodes=(), output="x"), "a graph needs at least one input"),
        (lambda: graph(Node(name="y", layer=Layer(op="relu6"), args="z")), "node 'y' uses 'z'"),
    ],
    ids=range(9),
)
def test_a_graph_that_does_not_hold_together(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


def test_a_layer_of_a_graph_says_what_comes_in():
    with pytest.raises(ValueError, match="node 'y': linear needs features: nothing before it says"):
        graph(Node(name="y", layer=Layer(op="linear", size=2), args="x")).build()


def test_shared_weights_tensors_and_several_inputs():
    nodes = (
        Node(name="a", layer=LINEAR, args="x", path="twice"),
        Node(name="b", layer=LINEAR, args="a", path="twice"),
        Node(name="w", tensor=(4,), path="part.w"),
        Node(name="n", tensor=(4,), dtype="int64", learnt=False),
        Node(name="y", call="mul(b, w)"),
        Node(name="pair", call="cat((y, z), dim=-1)"),
    )
    model = build(graph(*nodes, output="(pair, y)", inputs=2))
    assert set(model.state_dict()) == {"net.twice.weight", "net.twice.bias", "net.part.w", "net.n"}
    assert {n for n, _ in model.named_parameters()} == {"net.twice.weight", "net.twice.bias", "net.part.w"}
    x, z = torch.randn(3, 4), torch.randn(3, 4)
    pair, y = model(x, z)
    wanted = model.net.twice(model.net.twice(x)) * model.net.part.w
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(pair, torch.cat([wanted, z], -1))
    timed = model(x[:, None].expand(-1, 5, -1), z[:, None].expand(-1, 5, -1))[0]
    torch.testing.assert_close(timed[:, 2], pair)
    with pytest.raises(ValueError, match="all with time or none"):
        model(x[:, None], z)
    assert len(model.spec.example(2)) == 2


def test_a_spec_file_says_where_it_is_wrong():
    text = """fastsnn = 1
[model]
kind = "graph"
inputs = [{ name = "x", shape = [4] }]
output = "y"
[[model.nodes]]
name = "y"
call = "system(x)"
"""
    with pytest.raises(spec.SpecError, match=r"no function 'system'; .*functions: abs, "):
        spec.loads(text)


def normed(name, before, features):
    return Node(name=name, layer=Layer(op="batch_norm", features=features), args=before)


def test_batch_norms_are_folded_where_nobody_else_reads_what_they_read():
    torch.manual_seed(0)
    spikes = Layer(op="spikes", features=4, dims=3, neuron=create("neuron", "lif", fixed=True))
    nodes = (
        Node(name="a", layer=Layer(op="conv2d", features=2, size=4, kernel=(3,), padding=(1,), bias=False), args="x"),
        Node(name="p", layer=Layer(op="avg_pool", kernel=(2, 2)), args="a"),
        normed("n", "p", 4),
        Node(name="s", layer=spikes, args="n"),
        Node(name="b", layer=Layer(op="conv2d", features=4, size=4, kernel=(1,)), args="s"),
        normed("m", "b", 4),
        Node(name="y", call="add(m, b)"),  # b has a second reader
        Node(name="c", path="shared", layer=Layer(op="conv2d", features=4, size=4, kernel=(1,)), args="y"),
        normed("k", "c", 4),
        Node(name="d", path="shared", layer=Layer(op="conv2d", features=4, size=4, kernel=(1,)), args="k"),
    )
    model = build(Graph(inputs=(Input(name="x", shape=(2, 6, 6)),), nodes=nodes, output="d")).double().train()
    x = torch.rand(5, 3, 2, 6, 6).double() * 3
    for _ in range(3):
        model(x)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
        torch.nn.init.uniform_(norm.bias, -1.0, 1.0)
    lean = model.eval().folded()
    ops = {node.name: node.layer.op for node in lean.spec.nodes if node.layer is not None}
    assert (ops["n"], ops["m"], ops["k"]) == ("identity", "batch_norm", "batch_norm")
    assert model.spec.nodes[2].layer.op == "batch_norm"
    torch.testing.assert_close(lean(x), model(x), rtol=1e-9, atol=1e-9)
    assert bool((lean(x) != 0).any())
