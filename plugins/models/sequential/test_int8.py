"""INT8 weights where spikes come in: what has them, what is named; one stream as one piece, with the same bits."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import SpikeTensor, build, create
from fastsnn_core.errors import FastSNNError
from fastsnn_core.ops.dispatch import use
from fastsnn_core.plugins import registry
from fastsnn_core.probe import probe
from fastsnn_integer.quantization import Quant, quantise
from fastsnn_leaky.neurons import Leaky
from fastsnn_model_sequential import Layer, Sequential, describe

NEURON = create("neuron", "adaptive_threshold", k=2.0)


class Leaking(type(NEURON)):
    """A neuron with a membrane, of core alone."""

    def build(self, features):
        return Leaky(beta=0.7, threshold=0.5, lo=-4.0, hi=4.0)


class Firing(type(NEURON)):
    """Binary spikes of a fixed threshold, of core alone."""

    def build(self, features):
        return Leaky(beta=0.5, threshold=1.0, lo=0.0, hi=1.0, heaviside=True, default=("atan", 2.0), fixed=True)


LEAKS = Leaking()
FIRES = Firing()
IMAGES = (
    {"op": "conv2d", "size": 4, "kernel": (3,), "padding": (1,), "bias": False},
    {"op": "batch_norm"},
    {"op": "repeat", "steps": 3},
    {"op": "spikes", "neuron": FIRES},
    {"op": "conv2d", "size": 6, "kernel": (3,), "stride": (2,), "padding": (1,), "groups": 2, "bias": False},
    {"op": "batch_norm"},
    {"op": "spikes", "neuron": FIRES},
    {"op": "flatten"},
    {"op": "linear", "size": 5},
    {"op": "spikes", "neuron": LEAKS},
    {"op": "linear", "size": 3},
    {"op": "integrate"},
)


def spiking(layers=IMAGES, shape=(2, 7, 6), scale=1.5):
    torch.manual_seed(0)
    network = build(Sequential(input=shape, layers=tuple(Layer(**row) for row in layers))).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn_like(p) / scale if p.ndim > 1 else p)
    return network


@torch.no_grad()
def test_int8_weights_where_spikes_come_in():
    network, x = spiking(), torch.rand(4, 2, 7, 6)
    small = quantise(network)
    assert [layer.op for layer in small.spec.layers if layer.bits] == ["conv2d", "linear", "linear"]
    done = small.meta["milestones"][-1]
    assert done["int8"] == ["layers.10", "layers.4", "layers.8"]
    assert done["float"] == {"layers.0": "it reads numbers, no spikes"}
    with probe(small) as trace:
        wanted = small(x)
    assert min(float((r.spikes.counts != 0).float().mean()) for r in trace.values()) > 0.02
    twin = network.folded()  # the same values up to the rounding of the weights
    with probe(twin) as beside:
        twin(x)
    first = next(iter(trace))
    assert torch.equal(trace[first].spikes.counts, beside[first].spikes.counts)
    spikes = SpikeTensor(trace[first].spikes.counts.reshape(-1, 4, 7, 6), trace[first].spikes.scale)
    assert (twin.layers[4](spikes) - small.layers[4](spikes)).abs().max() < 0.02 * twin.layers[4](spikes).abs().max()
    with use("naive"):
        assert torch.equal(small(x), wanted)
    assert torch.equal(torch.cat([small(row[None]) for row in x]), wanted)
    again = build(small.spec).eval()
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), wanted)
    found = [describe(again.layers[i]) for i in (4, 8)]
    assert [(row.op, row.bits, row.features, row.size) for row in found] == [("conv2d", 8, 4, 6), ("linear", 8, 72, 5)]
    assert again.layers[4].extra_repr() == found[0].build().extra_repr()
    assert again.layers[4].weight.permute(1, 2, 3, 0).is_contiguous()  # an event reads a row
    with pytest.raises(FastSNNError, match="INT8 already"):
        quantise(again)
    small.runtime("event", coder="bitwise", calibration=x)
    assert torch.equal(small(x), wanted)


def test_layers_without_an_int8_form_are_named(caplog):
    wide = {"op": "conv2d", "size": 2, "kernel": (3,), "padding": (1,), "padding_mode": "reflect"}
    attends = {"op": "spiking_attention", "heads": 1, "neuron": FIRES}
    some = spiking(({"op": "spikes", "neuron": FIRES}, wide, {"op": "spikes", "neuron": FIRES}, attends, *IMAGES[4:9]))
    done = quantise(some).meta["milestones"][-1]
    assert done["int8"] == ["layers.4", "layers.8"]
    assert "reflect" in done["float"]["layers.1"]
    assert "layers.1 keeps float weights" in caplog.text
    assert {name: why for name, why in done["float"].items() if "linears" in name}.keys() >= {"layers.3.linears.query"}
    with pytest.raises(FastSNNError, match=r"none of its layers.*layers\.0: it reads numbers"):
        quantise(spiking(IMAGES[:1]))
    with pytest.raises(FastSNNError, match="INT8 weights with one scale per output only"):
        quantise(spiking(), Quant(bits=4))
    with pytest.raises(FastSNNError, match="one threshold per sample"):
        quantise(spiking()).layers[4](SpikeTensor(torch.ones(2, 4, 7, 6), torch.ones(1, 4, 1, 1)))


@torch.no_grad()
def test_a_nested_network_and_a_signal_have_int8_weights_too():
    part = Sequential(input=(4, 9), layers=(Layer(op="conv1d", size=4, kernel=(3,), padding=(1,)),))
    layers = (
        {"op": "conv1d", "size": 4, "kernel": (2,)},
        {"op": "spikes", "neuron": NEURON, "dims": 2},
        {"op": "residual", "part": part},
        {"op": "spikes", "neuron": NEURON, "dims": 2},
    )
    network, x = spiking(layers, (3, 10), 2.0), torch.randn(2, 5, 3, 10)
    small = quantise(network)
    assert small.meta["milestones"][-1]["int8"] == ["layers.2.part.layers.0"]
    assert (small(x) - network(x)).abs().max() < 0.15 * network(x).abs().max()
    first, state = small(x[:, :2], return_state=True)
    assert torch.equal(torch.cat([first, small(x[:, 2:], state)], 1), small(x))


def frame_calls(monkeypatch):
    """How often a piece of a network ran as one, from now on."""
    from fastsnn_integer.frames import FRAME_RUN

    if FRAME_RUN.pick("cpu")[0] == "naive":
        pytest.skip("no kernel set runs pieces: pip install fastsnn-kernel-numba")
    seen, right = [], FRAME_RUN.pick("cpu")

    def counted(*args):
        found = right[1](*args)
        seen.append(found is not NotImplemented)
        return found

    pick = type(FRAME_RUN).pick

    def watched(operator, device):
        name, function = pick(operator, device)
        return name, counted if operator is FRAME_RUN and name != "naive" else function

    monkeypatch.setattr(type(FRAME_RUN), "pick", watched)
    return seen


PLAIN = (*IMAGES[3:9], {"op": "spikes", "neuron": FIRES}, {"op": "dropout"}, {"op": "linear", "size": 3})


@torch.no_grad()
def test_a_frame_of_one_stream_runs_as_one_piece_with_the_bits_of_its_layers(monkeypatch):
    small, x = quantise(spiking(PLAIN, (4, 7, 6))), 2 * torch.rand(1, 6, 4, 7, 6)
    with use("naive"):
        wanted, ends = small(x, return_state=True)
    seen, out, state = frame_calls(monkeypatch), [], None
    for t in range(6):  # a step at a time, the state carried
        y, state = small(x[:, t : t + 1], state, return_state=True)
        out.append(y)
    assert seen == [True] * 6
    assert torch.equal(torch.cat(out, 1), wanted)
    assert state.keys() == ends.keys()
    assert all(torch.equal(state[key], ends[key]) for key in ends)
    assert torch.equal(small(x), wanted)
    small.runtime("event", coder="binary", steps=1) if "binary" in registry().names("coder") else None
    assert torch.equal(small(x), wanted)
    assert seen == [True] * 8
    with torch.no_grad():  # weights and constants that change are followed
        small.layers[5].scale.mul_(2)
        small.layers[0].neuron.theta.mul_(0.5)
    with use("naive"):
        twin = build(small.spec).eval()
        twin.load_state_dict({k: v for k, v in small.state_dict().items() if "coding" not in k})
        changed = twin(x)
    assert torch.equal(small(x), changed)
    assert not torch.equal(changed, wanted)
    small.layers[5].scale = 0.5 * small.layers[5].scale  # and others that take their place
    with use("naive"):
        changed = small(x)
    assert torch.equal(small(x), changed)
    small.layers[0].neuron.theta = 2 * small.layers[0].neuron.theta
    assert torch.equal(small(x), wanted)
    assert len(seen) == 11


def test_pieces_stand_back_for_gradients_resets_batches_and_hooks(monkeypatch):
    small, x = quantise(spiking(PLAIN, (4, 7, 6))), 2 * torch.rand(1, 3, 4, 7, 6)
    seen = frame_calls(monkeypatch)
    with torch.no_grad():
        wanted = small(x)
        assert seen.pop()
        small(x.expand(2, -1, -1, -1, -1))
        small(x, reset=torch.tensor([[True, False, True]]))
        with probe(small) as trace:
            assert torch.equal(small(x), wanted)
        assert len(trace) == 3
        handle = small.layers[-1].register_forward_hook(lambda m, a, y: 2 * y)
        assert not torch.equal(small(x), wanted)
        handle.remove()
        with pytest.raises(ValueError, match="state"):
            small(x, {"layers.0": torch.zeros(1, 5), "layers.3": None, "layers.6": None})
        assert not seen
        assert torch.equal(small(x), wanted)
        assert seen.pop()
        small.train()
        small(x)
        small.eval()
    assert torch.equal(small(x), wanted)
    assert not seen


@torch.no_grad()
def test_a_pool_in_front_of_time_is_taken_once_in_the_piece(monkeypatch):
    layers = ({"op": "max_pool", "kernel": (2,)}, {"op": "identity"}, {"op": "repeat", "steps": 3}, *PLAIN)
    small, x = quantise(spiking(layers, (4, 14, 12))), 2 * torch.rand(2, 4, 14, 12)
    with use("naive"):
        wanted, ends = small(x, return_state=True)
        later = small(torch.stack([x, x], 1), ends)
    seen = frame_calls(monkeypatch)
    for i in range(2):
        found, state = small(x[i : i + 1], return_state=True)
        assert torch.equal(found, wanted[i : i + 1])
        assert all(torch.equal(state[key], ends[key][i : i + 1]) for key in ends)
        assert torch.equal(small(torch.stack([x, x], 1)[i : i + 1], state), later[i : i + 1])  # with a time of its own
    assert seen == [True] * 4
