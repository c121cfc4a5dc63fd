"""The kit over this plugin; every operation's shape, module and description; what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastsnn_core import SpikeTensor, build, create, spec
from fastsnn_core.errors import FastSNNError
from fastsnn_core.testing import conformance
from fastsnn_leaky.neurons import Leaky
from fastsnn_model_sequential import Layer, Sequential, describe
from fastsnn_model_sequential.table import OPS

test_sequential = conformance("sequential")

NEURON = create("neuron", "adaptive_threshold", k=2.0)


class Leaks(type(NEURON)):
    """A neuron with a membrane, of core alone."""

    def build(self, features):
        return Leaky(beta=0.7, threshold=0.5, lo=-4.0, hi=4.0)


class Fires(type(NEURON)):
    """Binary spikes of a fixed threshold, of core alone."""

    def build(self, features):
        return Leaky(beta=0.5, threshold=1.0, lo=0.0, hi=1.0, heaviside=True, default=("atan", 2.0), fixed=True)


LEAKS = Leaks()
FIRES = Fires()
LAYERS = {
    "linear": ({"size": 5}, (2, 6)),
    "conv1d": ({"size": 5, "kernel": (3,), "stride": (2,), "padding": (1,)}, (2, 9)),
    "conv2d": ({"size": 4, "kernel": (3, 1), "groups": 2, "dilation": (2,), "bias": False}, (2, 8, 8)),
    "conv_transpose1d": ({"size": 5, "kernel": (3,), "stride": (2,), "output_padding": (1,)}, (2, 5)),
    "conv_transpose2d": ({"size": 5, "kernel": (3,), "stride": (2, 1), "padding": (1,), "dilation": (2,)}, (2, 5, 6)),
    "conv3d": ({"size": 3, "kernel": (2,), "padding_mode": "circular", "padding": (1,)}, (2, 4, 4, 5)),
    "conv_transpose3d": ({"size": 3, "kernel": (2,), "stride": (2,)}, (2, 3, 3, 2)),
    "channel_dropout": ({"p": 0.2, "dims": 1}, (3, 4)),
    "additive_mask": ({"heads": 2}, (5,)),
    "embedding": ({"features": 7, "size": 5}, (4,)),
    "batch_norm": ({"affine": False, "momentum": 0.3}, (3, 4)),
    "layer_norm": ({"eps": 1e-3, "bias": False}, (3, 4)),
    "rms_norm": ({}, (3, 4)),
    "group_norm": ({"groups": 2}, (4, 3)),
    "avg_pool": ({"kernel": (2,), "stride": (1,), "padding": (1,)}, (3, 6, 6)),
    "max_pool": ({"kernel": (3, 2), "dilation": (1, 2)}, (3, 7, 8)),
    "adaptive_avg_pool": ({"shape": (2, 2)}, (3, 6, 6)),
    "flatten": ({}, (3, 2, 2)),
    "unflatten": ({"shape": (3, 4)}, (12,)),
    "dropout": ({"p": 0.2}, (5,)),
    "leaky_relu": ({"slope": 0.3}, (5,)),
    "elu": ({"slope": 0.5}, (5,)),
    "prelu": ({}, (5,)),
    "spikes": ({"neuron": NEURON}, (3, 4)),
    "integrate": ({"tau": 3.0, "learn": True}, (4,)),
    "repeat": ({"steps": 3}, (4,)),
    "encode": ({"steps": 3, "coder": create("coder", "rate")}, (4,)),
    "difference": ({"coder": create("coder", "delta")}, (4,)),
    "td_batch_norm": ({"alpha": 0.5, "threshold": 2.0}, (3, 4)),
    "residual": (
        {
            "part": Sequential(input=(3, 4), layers=(Layer(op="spikes", neuron=FIRES),)),
            "shortcut": Sequential(input=(3, 4), layers=(Layer(op="spikes", neuron=FIRES),)),
            "how": "iand",
        },
        (3, 4),
    ),
    "spiking_attention": ({"heads": 2, "neuron": FIRES, "scale": 0.5}, (6, 2, 2)),
    "part": ({"part": Sequential(input=(6,), layers=(Layer(op="linear", size=2),))}, (6,)),
}


@pytest.mark.parametrize("op", OPS)
def test_shape_module_and_description_agree(op):
    """The shape that the spec works out is the module's; describing the module gives a layer of the same weights."""
    more, shape = LAYERS.get(op, ({}, (5,)))
    layer = Layer(op=op, **more)
    module = layer.build(shape).eval()
    x = torch.randint(0, 7, (3, *shape)) if op == "embedding" else torch.randn(3, *shape)
    inputs = (x, x) if op == "additive_mask" else (x,)
    y = module(*inputs)
    y = y if isinstance(y, torch.Tensor) else y.value()
    assert y.shape == (3, *layer.after(shape))
    again = describe(module)
    assert again is not None
    assert again.op == op
    twin = again.build().eval()
    twin.load_state_dict(module.state_dict())
    z = twin(*inputs)
    assert torch.equal(z if isinstance(z, torch.Tensor) else z.value(), y)
    if op not in ("mean",):
        assert describe(twin) == again


@pytest.mark.parametrize("slopes", [1, 5])
def test_a_prelu_has_one_slope_or_one_for_each_channel(slopes):
    module = nn.PReLU(slopes)
    nn.init.uniform_(module.weight)
    layer = describe(module)
    x = torch.randn(3, 5, 4)
    twin = build(Sequential(input=(5, 4), layers=(layer,))).eval()
    twin.layers[0].load_state_dict(module.state_dict())
    assert torch.equal(twin(x), module(x))


def test_modules_without_a_layer_are_not_described():
    for module in (nn.Conv2d(1, 1, 2, padding="same"), nn.Softmax(1), nn.BatchNorm1d(2, momentum=None)):
        assert describe(module) is None
    for module in (nn.LSTM(2, 2), nn.Embedding(3, 2, max_norm=1.0)):
        assert describe(module) is None
    hooked, patched = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(lambda m, i, o: 2 * o)
    patched.forward = lambda x: x
    assert describe(hooked) is None
    assert describe(patched) is None
    assert describe(nn.Conv1d(1, 2, 3, padding="same")).padding == (1,)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"op": "relu", "kernel": [3]}, "relu takes no 'kernel'; it takes nothing"),
        ({"op": "linear"}, "linear needs size"),
        ({"op": "conv2d", "size": 4, "kernel": [3, 3, 3]}, "conv2d has 2 dimensions, but kernel = [3, 3, 3]"),
        ({"op": "conv2d", "size": 4, "kernel": [9]}, "conv2d makes [4, 0, 0] out of [1, 8, 8]"),
        ({"op": "conv1d", "size": 4, "kernel": [3]}, "conv1d works on samples of 2 dimensions, got [1, 8, 8]"),
        ({"op": "linear", "size": 2, "features": 7}, "linear says features = 7, but 8 come in from [1, 8, 8]"),
        ({"op": "adaptive_avg_pool", "shape": [2]}, "adaptive_avg_pool to [2] needs 2 dimensions, got [1, 8, 8]"),
        ({"op": "rleu"}, "expected one of 'linear'"),
        ({"op": "dropout", "p": 1.0}, "expected >= 0, < 1, got 1.0"),
    ],
    ids=range(9),
)
def test_what_does_not_fit_is_an_error_with_its_place(table, says):
    text = {"fastsnn": 1, "model": {"kind": "sequential", "input": [1, 8, 8], "layers": [table]}}
    with pytest.raises(spec.SpecError) as error:
        spec.from_table(text)
    assert says in str(error.value)


def test_weights_are_called_plainly():
    layers = (Layer(op="conv2d", size=4, kernel=(3,)), Layer(op="batch_norm"), Layer(op="relu"), Layer(op="flatten"))
    model = build(Sequential(input=(1, 6, 6), layers=(*layers, Layer(op="linear", size=2))))
    assert {n.rpartition(".")[0] for n in model.state_dict()} == {"layers.0", "layers.1", "layers.4"}
    assert model.state_dict()["layers.4.weight"].shape == (2, 64)


def test_a_membrane_is_carried_and_the_mean_ends_time():
    torch.manual_seed(0)
    layers = (Layer(op="linear", size=4), Layer(op="spikes", neuron=LEAKS), Layer(op="linear", size=2))
    model, x = Sequential(input=(3,), layers=layers).build().eval(), torch.randn(2, 6, 3)
    whole, end = model(x, return_state=True)
    assert whole.shape == (2, 6, 2)
    state, rows = None, []
    for piece in x.split([2, 1, 3], 1):
        y, state = model(piece, state, return_state=True)
        rows.append(y)
    torch.testing.assert_close(torch.cat(rows, 1), whole)
    assert end.keys() == {"layers.1"}
    assert not torch.allclose(whole, torch.stack([model(x[:, t]) for t in range(6)], 1))  # the membrane matters
    pooled = Sequential(input=(3,), layers=(*layers, Layer(op="mean"), Layer(op="softmax"))).build().eval()
    pooled.load_state_dict(model.state_dict())
    torch.testing.assert_close(pooled(x), whole.mean(1).softmax(-1))
    assert pooled(x[:, 0]).shape == (2, 2)


def test_time_begins_where_a_layer_says_so():
    torch.manual_seed(0)
    front, back = (
        (Layer(op="linear", size=4), Layer(op="batch_norm")),
        (Layer(op="spikes", neuron=LEAKS), Layer(op="linear", size=2)),
    )
    shown = Sequential(input=(3,), layers=(*front, Layer(op="repeat", steps=5), *back)).build().eval()
    timed = Sequential(input=(3,), layers=(*front, *back)).build().eval()
    timed.load_state_dict(
        {k.replace("layers.3", "layers.2").replace("layers.4", "layers.3"): v for k, v in shown.state_dict().items()}
    )
    x = torch.rand(2, 3)
    y, state = shown(x, return_state=True)
    assert y.shape == (2, 5, 2)
    assert len({tuple(row.tolist()) for row in y[0]}) > 1  # the membrane goes on
    torch.testing.assert_close(y, timed(x[:, None].expand(2, 5, 3)))
    torch.testing.assert_close(shown(x, state), shown(torch.cat([x[:, None]] * 10, 1))[:, 5:])  # the stream goes on
    again = shown(x, state, reset=torch.tensor([[True], [False]]))
    torch.testing.assert_close(again[0], y[0])
    torch.testing.assert_close(again[1], shown(x, state)[1])


def test_a_coder_writes_the_steps():
    model = Sequential(input=(3,), layers=(Layer(op="encode", steps=8, coder=create("coder", "latency")),)).build()
    x = torch.tensor([[0.0, 0.5, 1.0]])
    assert model(x)[0].argmax(0).tolist() == [0, 3, 0]
    assert model(x).sum(1).tolist() == [[0.0, 1.0, 1.0]]
    noise = create("coder", "rate", how="bernoulli")
    random = Sequential(input=(3,), layers=(Layer(op="encode", steps=64, coder=noise),)).build()
    torch.manual_seed(1)
    draws = [random(x) for _ in range(2)]
    torch.manual_seed(1)
    assert torch.equal(random(x), draws[0])  # from torch's generator: a resumed run draws the same
    assert not torch.equal(*draws)
    assert torch.equal(random.eval()(x), random(x))
    for wrong in ("delta", "binary"):
        with pytest.raises(FastSNNError, match="encode takes a coder of values"):
            Sequential(input=(3,), layers=(Layer(op="encode", steps=2, coder=create("coder", wrong)),)).build()


def test_a_difference_streams_and_starts_anew():
    delta = create("coder", "delta", threshold=0.5)
    model = Sequential(input=(2,), layers=(Layer(op="difference", coder=delta),)).build()
    x = torch.randn(2, 6, 2).cumsum(1)
    whole = model(x)
    torch.testing.assert_close(whole.cumsum(1) * 0.5, (x / 0.5).round() * 0.5)
    first, state = model(x[:, :4], return_state=True)
    assert torch.equal(torch.cat([first, model(x[:, 4:], state)], 1), whole)
    mark = torch.tensor([[False] * 3 + [True] + [False] * 2] * 2)
    assert torch.equal(model(x, reset=mark)[:, 3:], model(x[:, 3:]))
    with pytest.raises(FastSNNError, match="over time"):
        Sequential(input=(2,), layers=(Layer(op="difference", coder=create("coder", "rate")),)).build()


def test_a_leaky_integrator_reads_out():
    model = Sequential(input=(2,), layers=(Layer(op="integrate", tau=4.0),)).build()
    x, y, rows = torch.randn(3, 9, 2), torch.zeros(3, 2), []
    for t in range(9):
        y = 0.75 * y + 0.25 * x[:, t]
        rows.append(y)
    torch.testing.assert_close(model(x), torch.stack(rows, 1))
    first, state = model(x[:, :4], return_state=True)
    torch.testing.assert_close(torch.cat([first, model(x[:, 4:], state)], 1), model(x))


def test_a_residual_joins_spikes_as_counts():
    torch.manual_seed(0)
    spikes = Layer(op="spikes", neuron=FIRES)
    part = Sequential(input=(5,), layers=(Layer(op="linear", size=5), spikes))
    x = torch.rand(4, 7, 5) * 3
    for how, join in {"add": lambda f, s: f + s, "and": lambda f, s: f * s, "iand": lambda f, s: (1 - f) * s}.items():
        model = Sequential(input=(5,), layers=(spikes, Layer(op="residual", part=part, how=how))).build().eval()
        seen = []
        model.layers[1].register_forward_hook(lambda m, i, o, seen=seen: seen.append((i[0], o)))
        y = model(x)
        before, joined = seen[0]
        assert isinstance(joined, SpikeTensor)
        branch = model.layers[1].part(before.value().view(4, 7, 5))
        assert torch.equal(y, join(branch, before.value().view(4, 7, 5)))
        numbers = Sequential(input=(5,), layers=(Layer(op="residual", part=part, how=how),))
        if how == "add":
            model = numbers.build().eval()
            torch.testing.assert_close(model(x), model.layers[0].part(x) + x)
        else:
            with pytest.raises(FastSNNError, match="joins spikes of one threshold"):
                numbers.build()
    wrong = Sequential(input=(5,), layers=(Layer(op="linear", size=4),))
    with pytest.raises(FastSNNError, match=r"makes \[4\] out of \[5\], its shortcut \[5\]"):
        Sequential(input=(5,), layers=(Layer(op="residual", part=wrong),))
    with pytest.raises(FastSNNError, match=r"the part takes \[5\], but \[6\] comes in"):
        Sequential(input=(6,), layers=(Layer(op="residual", part=part),))


def fire(memory, name, x):
    u = 0.5 * memory[name] + x
    memory[name] = u - (u >= 1).float()
    return (u >= 1).float()


def project(ssa, memory, name, z):
    z = ssa.linears[name](z)
    return fire(memory, name, ssa.norms[name](z.transpose(1, 2)).transpose(1, 2))


def test_spiking_attention_is_its_definition():
    torch.manual_seed(0)
    for places in ((2,), (5, 4)):  # fewer and more than channels of a head
        layer = Layer(op="spiking_attention", heads=2, neuron=FIRES, scale=0.5)
        model = Sequential(input=(6, *places), layers=(layer,)).build().eval()
        ssa = model.layers[0]
        for norm in ssa.norms.values():
            torch.nn.init.uniform_(norm.weight, 1.0, 4.0)
            torch.nn.init.uniform_(norm.bias, 0.5, 1.2)
        x = torch.rand(3, 4, 6, *places) * 2
        rows = x.flatten(3).transpose(2, 3)  # [B, T, L, C]

        memory = {name: torch.zeros(1) for name in ("query", "key", "value", "mixed", "out")}
        active = []
        for t in range(4):
            q, k, v = (project(ssa, memory, n, rows[:, t]).unflatten(-1, (2, 3)) for n in ("query", "key", "value"))
            mixed = 0.5 * torch.einsum("nlhd,nmhd,nmhe->nlhe", q, k, v).flatten(2)
            spikes = fire(memory, "mixed", mixed)
            active.append(float(spikes.mean()))
            wanted = project(ssa, memory, "out", spikes).transpose(1, 2).reshape(3, 6, *places)
            assert torch.equal(model(x)[:, t], wanted)
        assert 0 < sum(active) < 4


def test_a_threshold_dependent_norm_has_the_deviation_of_the_threshold():
    layer = Layer(op="td_batch_norm", alpha=0.5, threshold=4.0)
    model = Sequential(input=(3, 5), layers=(layer,)).build().train()
    y = model(torch.randn(16, 6, 3, 5) * 7 + 2)
    torch.testing.assert_close(y.std((0, 1, 3), unbiased=False), torch.full((3,), 2.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(y.mean((0, 1, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_a_fixed_dropout_drops_the_same_at_every_step():
    torch.manual_seed(0)
    model = Sequential(input=(40,), layers=(Layer(op="dropout", p=0.25, fixed=True),)).build().train()
    x = torch.ones(2, 6, 40)
    y, state = model(x, return_state=True)
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert not torch.equal(y[0], y[1])
    assert {round(v, 4) for v in y.unique().tolist()} == {0.0, 1.3333}
    assert torch.equal(model(x, state), y)  # the stream goes on with its mask
    assert not torch.equal(model(x), y)
    assert torch.equal(model.eval()(x), x)


def test_a_batch_norm_spreads_its_levels_at_first_and_says_so():
    torch.manual_seed(0)
    layers = (Layer(op="linear", size=500), Layer(op="batch_norm", spread=2.0))
    norm = Sequential(input=(1,), layers=layers).build().get_submodule("layers.1")
    assert 1.8 < float(norm.bias.detach().max()) <= 2.0
    assert -2.0 <= float(norm.bias.detach().min()) < -1.8
    assert "spread=2" in repr(norm)
    assert describe(norm).spread == 2.0
    assert bool((Layer(op="batch_norm", features=3).build().bias == 0).all())
    with pytest.raises(FastSNNError, match=r"spread = 1 is of a batch norm's β, which affine = false leaves out"):
        Layer(op="batch_norm", features=3, affine=False, spread=1.0).build()


def test_batch_norms_fold_through_pools_and_only_where_they_may():
    torch.manual_seed(0)
    layers = [Layer(op="conv2d", size=3, kernel=(3,)), Layer(op="max_pool", kernel=(2,))]
    layers += [Layer(op="batch_norm"), Layer(op="relu"), Layer(op="batch_norm"), Layer(op="flatten")]
    model = Sequential(input=(2, 8, 8), layers=(*layers, Layer(op="linear", size=4))).build().double()
    for _ in range(5):
        model(torch.randn(9, 2, 8, 8).double())
    x = torch.randn(4, 2, 8, 8).double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lean = model.folded()
    assert [layer.op for layer in lean.spec.layers] == [
        "conv2d", "max_pool", "identity", "relu", "batch_norm", "flatten", "linear",
    ]  # fmt: skip
    torch.testing.assert_close(lean(x), model.eval()(x))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with torch.no_grad():
        model.layers[2].weight[1] = -1.0  # then the largest is the smallest
    again = model.folded()
    assert again.spec.layers[2].op == "batch_norm"
    torch.testing.assert_close(again(x), model(x))
