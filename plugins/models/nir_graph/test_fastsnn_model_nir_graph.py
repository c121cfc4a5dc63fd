"""The kit over this plugin; every neuron against its equation in plain numbers; cycles, delays, streams, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsnn_core import build
from fastsnn_core.errors import FastSNNError
from fastsnn_core.testing import conformance
from fastsnn_model_nir_graph import NirGraph, NirNode
from fastsnn_model_nir_graph.order import arrange
from fastsnn_model_nir_graph.units import CONSTANTS

test_nir_graph = conformance("nir_graph")
DT = 1e-3


def node(name, kind, sources, shape=(), bias=False, **more):
    return NirNode(name=name, kind=kind, sources=sources, shape=shape, bias=bias, **more)


def network(*nodes, output=None, shape=(3,), dt=DT, **constants):
    model = build(NirGraph(input=shape, nodes=tuple(nodes), output=output or nodes[-1].name, dt=dt)).eval()
    for name, value in constants.items():
        unit, _, constant = name.partition("__")
        target = model.units[model.where[unit]]
        with torch.no_grad():
            getattr(target, constant).copy_(torch.as_tensor(value, dtype=torch.float32))
    return model


def scalar(kind, x, c):
    """The definition, one channel, float64."""
    v = i = 0.0
    out = []
    for value in x:
        if kind.startswith("Cuba"):
            i += DT / c["tau_syn"] * (c["w_in"] * value - i)
            value = i
        if kind in ("I", "IF"):
            v += c["r"] * value
        else:
            v += DT / c["tau_mem" if kind.startswith("Cuba") else "tau"] * (c["v_leak"] - v + c["r"] * value)
        if kind in ("IF", "LIF", "CubaLIF"):
            out.append(float(v > c["v_threshold"]))
            v = c["v_reset"] if out[-1] else v
        else:
            out.append(v)
    return np.array(out)


@pytest.mark.parametrize("kind", ["I", "IF", "LI", "LIF", "CubaLI", "CubaLIF"])
def test_neurons_are_their_equations(kind):
    draw = np.random.default_rng(3)
    c = {
        "tau": 0.007,
        "tau_mem": 0.006,
        "tau_syn": 0.004,
        "r": 1.7,
        "v_leak": 0.13,
        "v_threshold": 0.61,
        "v_reset": -0.21,
        "w_in": 2.3,
    }
    model = network(node("n", kind, ("input",), (3,)), **{f"n__{k}": c[k] for k in CONSTANTS[kind]})
    x = draw.uniform(0, 1.5, (200, 3))
    found = model(torch.from_numpy(x)[None])[0].numpy()
    wanted = np.stack([scalar(kind, x[:, j], c) for j in range(3)], 1)
    if kind in ("IF", "LIF", "CubaLIF"):
        assert 10 < wanted.sum() < 590
        assert (found == wanted).all()
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_membrane_at_the_threshold_is_silent():
    model = network(node("n", "IF", ("input",), (3,)), n__v_threshold=1.0)
    assert model(torch.ones(1, 2, 3)).tolist() == [[[0.0] * 3, [1.0] * 3]]


def test_delays_scales_thresholds_and_pools():
    model = network(node("n", "Delay", ("input",), (3,)), n__delay=[0.0, 1e-3, 3e-3])
    x = torch.arange(1.0, 6)[:, None].expand(5, 3)[None]
    assert model(x)[0].T.tolist() == [[1, 2, 3, 4, 5], [0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]
    first, state = model(x[:, :2], return_state=True)
    assert torch.equal(torch.cat([first, model(x[:, 2:], state)], 1), model(x))
    assert network(node("n", "Scale", ("input",), (3,)), n__scale=[1.0, 2.0, -1.0])(x)[0, 1].tolist() == [2, 4, -2]
    assert network(node("n", "Threshold", ("input",), (3,)), n__threshold=2.0)(x)[0, :, 0].tolist() == [0, 0, 1, 1, 1]
    image = torch.rand(1, 2, 4, 4)
    pools = [
        network(node("p", k, ("input",), kernel=(2, 2), stride=(2, 2), padding=(0, 0)), shape=(2, 4, 4))
        for k in ("AvgPool2d", "SumPool2d")
    ]
    torch.testing.assert_close(pools[1](image), 4 * torch.nn.functional.avg_pool2d(image, 2))
    torch.testing.assert_close(pools[0](image) * 4, pools[1](image))


def test_a_cycle_is_a_step_late_and_starts_from_silence():
    """v_t = v_{t-1} + x_t + (w z_{t-1} + b): the bias feeds back from the first step on, as a silent neuron's does."""
    model = network(
        node("n", "IF", ("input", "back"), (1,)), node("back", "Affine", ("n",), (1, 1), bias=True),
        output="n", shape=(1,), n__v_threshold=1.0, back__weight=[[0.6]], back__bias=[0.1],
    )  # fmt: skip
    x, v, z, wanted = [0.5, 0.5, 0.5, 0.5, 0.0, 0.0], 0.0, 0.0, []
    for value in x:
        v = v + value + 0.6 * z + 0.1
        z = float(v > 1.0)
        v = 0.0 if z else v
        wanted.append(z)
    found = model(torch.tensor(x)[None, :, None])
    assert found[0, :, 0].tolist() == wanted
    assert sum(wanted) > 1
    state, rows = None, []
    for t in range(6):
        y, state = model(torch.tensor([[[x[t]]]]), state, return_state=True)
        rows.append(y)
    assert torch.equal(torch.cat(rows, 1), found)
    reset = torch.tensor([[False, False, True, False, False, False]])
    again = model(torch.tensor(x)[None, :, None], reset=reset)
    assert torch.equal(again[:, 2:], model(torch.tensor(x[2:])[None, :, None]))


def test_two_neurons_in_a_ring_delay_one_edge_only():
    order, late = arrange(
        {"input": [], "a": ["input", "wb"], "wa": ["a"], "b": ["wa"], "wb": ["b"]}, "input",
        {"input": False, "a": True, "wa": False, "b": True, "wb": False},
    )  # fmt: skip
    assert late == {("wb", "a")}
    assert [n for n in order if n in "ab"] == ["a", "b"]
    deep = {"input": []} | {f"n{i}": [f"n{i - 1}" if i else "input"] for i in range(5000)}
    assert len(arrange(deep, "input", dict.fromkeys(deep, False))[0]) == 5001


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([node("n", "IF", ("nowhere",), (3,))], "reads 'nowhere', which is no node"),
        ([node("n", "IF", ("input",), (4,))], r"takes \[4\], but gets \[3\]"),
        ([node("n", "Linear", ("input",), (2, 4))], r"takes \[…, 4\]"),
        ([node("n", "IF", ("input",), (3,)), node("n", "IF", ("input",), (3,))], "two nodes"),
        ([node("n", "IF", (), (3,))], "reads nothing"),
        ([node("n", "Scale", ("input", "m"), (3,)), node("m", "Scale", ("n",), (3,))], "no neuron or delay"),
        ([node("n", "Scale", ("input", "n"), (3,))], "no neuron or delay"),
        ([node("w", "Linear", ("input",), (2, 3)), node("n", "IF", ("input", "w"), (3,))], "adds up"),
        (
            [node("a", "IF", ("b",), (3,)), node("b", "IF", ("a",), (3,)), node("n", "IF", ("input",), (3,))],
            "not reached",
        ),
        ([node("n", "Flatten", ("input",), dims=(0, 3))], "dimensions"),
    ],
)
def test_graphs_without_a_meaning_are_refused(nodes, why):
    with pytest.raises(FastSNNError, match=why):
        NirGraph(input=(3,), nodes=tuple(nodes), output="n")


def test_inputs_and_states_that_do_not_fit_are_refused():
    model = network(node("n", "LIF", ("input",), (3,)))
    with pytest.raises(FastSNNError, match=r"takes \[B, 3\]"):
        model(torch.zeros(1, 2, 4))
    _, state = model(torch.zeros(2, 1, 3), return_state=True)
    with pytest.raises(FastSNNError, match="streams"):
        model(torch.zeros(1, 1, 3), state)
    with pytest.raises(FastSNNError, match="it keeps n"):
        model(torch.zeros(2, 1, 3), {"other": state["n"]})
    with pytest.raises(FastSNNError, match="4 dimensions"):
        node("n", "Conv2d", ("input",), (3, 3))
