"""Two runtimes, one model: every coder, neuron and kind of linear layer; wide counts; bundles; bits in any batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fastsnn_core import SpikeSite, SpikeTensor, build, bundle, load, ops, save
from fastsnn_core.component import KINDS
from fastsnn_core.probe import probe
from fastsnn_core.spec import converter
from fastsnn_core.testing import strategies
from fastsnn_events import coding, runtime
from fastsnn_integer import deterministic, fused_row_ops, testing
from fastsnn_integer.quantization import Quant, QuantEmbedding, QuantLinear, quantise
from fastsnn_kit.draws import cuts

quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
SIGNED = [
    {"kind": "ternary"},
    {"kind": "bitwise"},
    {"kind": "bitwise", "order": "lsb"},
    {"kind": "twos_complement"},
]
UNSIGNED = [
    {"kind": "binary"},
    {"kind": "bitwise", "signed": False},
    {"kind": "bitwise", "signed": False, "order": "lsb"},
]
NEURONS = [
    {"kind": "adaptive_threshold"},
    {"kind": "adaptive_threshold", "k": 9.0, "limit": 6},
    {"kind": "adaptive_threshold", "dead_zone": 1.0},
    {"kind": "adaptive_threshold", "top": 3},
    {"kind": "lif"},
    {"kind": "lif", "hard_reset": True},
    {"kind": "ilif"},
    {"kind": "lif_sint"},
    {"kind": "lif_sint", "signed": False, "beta": 0.0},
]
LINEARS = {
    "float": lambda: nn.Linear(12, 7),
    "int8": lambda: QuantLinear(nn.Linear(12, 7)),
    "int8, no bias": lambda: QuantLinear(nn.Linear(12, 7, bias=False)),
    "int8 groups": lambda: QuantLinear(nn.Linear(12, 7), group=5),
    "int8 table": lambda: QuantEmbedding(nn.Embedding(7, 12), group=0),
}


def make(part, name="", /, **table):
    """A component of a kind, from its name and parameters or from a table, as a spec would have it."""
    return converter().structure({"kind": name} | table if name else table, KINDS[part])


class Layer(nn.Module):
    """A spike site and a linear layer."""

    def __init__(self, neuron, linear):
        super().__init__()
        self.site, self.linear = SpikeSite(make("neuron", **neuron).build(12) if neuron else None), linear

    def forward(self, x, state=None, reset=None):
        spikes, state = self.site(x, state, reset)
        return self.linear(spikes), state


def signals(signed):
    """Inputs with ties at every count: in row 0 the mean magnitude is 3, so V is 1 at k = 3 and θ is 1 or 1/2."""
    ties = torch.tensor([0.5, 1.5, -0.5, -2.5, 2.5, 3.5, 4.5, -3.5, -1.5, 6.5, 0.0, 9.0])
    assert float(ties.abs().mean()) == 3.0
    torch.manual_seed(1)
    rows = [ties, ties / 2, torch.zeros(12), torch.ones(12), torch.randn(12) * 5, torch.full((12,), -1e-3)]
    burst = torch.zeros(12)
    burst[3], burst[5] = 700.0, -900.0
    x = torch.stack([torch.stack([*rows, burst]), torch.randn(7, 12) * torch.logspace(-3, 2, 7)[:, None]])
    return x if signed else x.abs()


def cases():
    for neuron, linear in itertools.product(NEURONS, LINEARS):
        unsigned = neuron["kind"] in ("lif", "ilif") or neuron.get("signed") is False
        for coder in [*SIGNED, *UNSIGNED]:
            label = f"{'-'.join(map(str, neuron.values()))} {'-'.join(map(str, coder.values()))} {linear}"
            yield pytest.param(neuron, coder, linear, coder in SIGNED or unsigned, id=label)


@pytest.mark.parametrize(("neuron", "coder", "linear", "signed"), list(cases()))
def test_every_coder_neuron_and_layer(neuron, coder, linear, signed):
    """Counts, trains and replayed membranes give the same bits, state carried and documents reset."""
    torch.manual_seed(0)
    layer, x = Layer(neuron, LINEARS[linear]()).eval(), signals(signed)
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset[0, 2] = reset[1, 5] = True
    with torch.no_grad():
        _, state = layer(x[:, :2])
        wanted, end = layer(x[:, 2:], state, reset[:, 2:])
        runtime.switch_runtime(layer, "event", coder, 3)
        found, last = layer(x[:, 2:], state, reset[:, 2:])
        assert torch.equal(found, wanted)
        replayed = runtime.replay(layer, x[:, 2:], state, reset[:, 2:])
        assert torch.equal(replayed.output[0], wanted)
        if end is not None:
            assert torch.equal(end, last)
            assert torch.equal(end, replayed.output[1])
        with probe(layer) as trace:
            layer(x[:, 2:], state, reset[:, 2:])
        seen, fired = trace["site"].spikes, replayed.sites["site"].spikes
        assert seen.form == fired.form == "dense"
        assert torch.equal(seen.train, fired.train)
        assert torch.equal(seen.weights, fired.weights)
        assert set(fired.train.unique().tolist()) <= ({-1, 0, 1} if coder in SIGNED else {0, 1})


@pytest.mark.parametrize("coder", [*SIGNED, *UNSIGNED], ids=str)
@pytest.mark.parametrize("first", [0.5, 1.0])
@quick
@given(data=st.data())
def test_membranes_find_the_code(coder, first, data):
    """`replay` of any potential equals `encode` of its rounded count (or of its step), ties to even."""
    coder = make("coder", **coder)
    halves = st.integers(-15, 15).map(lambda i: i / 2)
    rows = data.draw(st.lists(halves | st.floats(-7.5, 7.5, width=32), min_size=1, max_size=8))
    u = torch.tensor(rows)
    u = u.abs() if not coder.signed else u
    if first == 1.0:
        u = u.clamp(0, 1)
    counts = u.round() if first == 0.5 else (u >= 1).float()
    steps = coder.steps_for(8)
    membranes, train = coder.replay(u, steps, first)
    wanted = coder.encode(counts, steps)
    assert torch.equal(train, wanted.train)
    assert membranes.shape == train.shape
    assert bool(torch.isfinite(membranes).all())


def test_v0_and_ties_matter():
    """The two mistakes a replay can make, planted: v0 = 0 gives floor, ties up give another count."""
    coder = make("coder", "ternary")
    u = torch.tensor([0.7, 2.5])
    assert coder.replay(u, 4, 0.5)[1].sum(0).tolist() == [1, 2]
    assert coder.replay(u - 0.5, 4, 0.5)[1].sum(0).tolist() != [1, 2]
    from fastsnn_events.coder_helpers import integrate

    assert integrate(u + 0.5, [1] * 4, False)[1].sum(0).tolist() == [1, 3]


# -- steps ---------------------------------------------------------------------------------------------------------


def model(**changes):
    torch.manual_seed(0)
    small = {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 61}
    return build(make("model", "decoder", **(small | changes))).eval()


def test_steps_are_calibrated_with_room_and_stored(tmp_path):
    net, tokens = quantise(model()), torch.randint(0, 61, (2, 20))
    with torch.no_grad(), probe(net) as trace:
        wanted = net(tokens)
    assert net.runtime("event", {"kind": "bitwise", "order": "lsb"}, calibration=tokens) is net
    rows = runtime.report(net)
    assert {n: r["steps"] for n, r in rows.items()} == {
        n: (2 * r.spikes.largest()).bit_length() for n, r in trace.items()
    }
    again = load(save(net, tmp_path / "a.snn"))
    assert bundle.verify(tmp_path / "a.snn")[0]["runtime"]["coder"]["order"] == "lsb"
    assert "fastsnn-coder-bitwise" in bundle.verify(tmp_path / "a.snn")[0]["distributions"]
    assert runtime.mode_of(again) == "event"
    assert {n: r["steps"] for n, r in runtime.report(again).items()} == {n: r["steps"] for n, r in rows.items()}
    with torch.no_grad():
        assert torch.equal(again(tokens), wanted)
        runtime.switch_runtime(again, "event")  # steps that are there stay
        assert runtime.report(again).keys() == rows.keys()
        assert torch.equal(again.runtime("count")(tokens), wanted)
    assert runtime.mode_of(load(save(again, tmp_path / "b.snn"))) == "count"
    save(load(tmp_path / "a.snn"), tmp_path / "c.snn")
    for name in ("weights.safetensors", "config.json", "meta.json"):
        assert (tmp_path / "a.snn" / name).read_bytes() == (tmp_path / "c.snn" / name).read_bytes()


def test_bounded_neurons_never_need_more():
    net = model(neuron={"kind": "ilif", "levels": 4})
    net.runtime("event", "binary")
    assert {r["steps"] for r in runtime.report(net).values()} <= {1, 2, 3, 4}


@pytest.mark.parametrize("coder", SIGNED, ids=str)
def test_wide_counts_are_whole_counted_and_nobody_elses(coder):
    site = SpikeSite(make("neuron", "adaptive_threshold").build(12))
    runtime.switch_runtime(site, "event", coder, 3)
    x = signals(True)[:1]
    with torch.no_grad():
        together = site(x)[0]
        counts = site.neuron(x)[0].counts
        assert torch.equal(together.counts.float(), counts)
        tally = runtime.report(site)[""]
        limit = coding.most(make("coder", **coder), 3)
        assert tally["wide"] == int((counts.abs().amax(-1) > limit).sum()) > 0
        assert tally["largest"] == int(counts.abs().max())
        assert tally["extra_steps"] > 0
        for t in range(x.shape[1]):
            alone = site(x[:, t : t + 1])[0]
            mine = {
                (int(w), i): s
                for w, row in zip(alone.weights, alone.train[:, 0, 0])
                for i, s in enumerate(row.tolist())
                if s
            }
            rows = together.train[:, 0, t]
            other = {(int(w), i): s for w, row in zip(together.weights, rows) for i, s in enumerate(row.tolist()) if s}
            assert mine == other, "a token's spikes depend on its batch"
    runtime.switch_runtime(site, "event", coder, 3, strict=True)
    with pytest.raises(ValueError, match=r"site of the model: count \d+ needs \d+ \w+ steps, 3 given"):
        site(x)


def test_errors_say_which_site_and_what_is_possible():
    net = model()
    with pytest.raises(ValueError, match="no runtime called 'evnt'; there are count and event"):
        net.runtime("evnt")
    with pytest.raises(ValueError, match="'rate' does not carry counts exactly"):
        net.runtime("event", "rate")
    with pytest.raises(ValueError, match="steps must be"):
        net.runtime("event", steps=0)
    with pytest.raises(ValueError, match="no spike sites"):
        model(sites=[]).runtime("event")
    with pytest.raises(ValueError, match="only the event runtime has spike times"):
        runtime.replay(net, torch.zeros(1, 2, dtype=torch.long))
    net.runtime("event", "binary")
    with pytest.raises(ValueError, match=r"site layers.0.attention.inner: binary spikes carry no sign"):
        net(torch.zeros(1, 2, dtype=torch.long))
    runtime.switch_runtime(
        site := SpikeSite(make("neuron", "adaptive_threshold", k=1e4).build(2)), "event", "bitwise", 8
    )
    with pytest.raises(ValueError, match="finite"):
        site(torch.full((1, 1, 2), torch.nan))


def test_networks_over_images_too():
    layers = [
        {"op": "conv2d", "size": 3, "kernel": [3]},
        {"op": "spikes", "neuron": {"kind": "ilif"}},
        {"op": "avg_pool", "kernel": [2]},
        {"op": "flatten"},
        {"op": "linear", "size": 4},
    ]
    torch.manual_seed(0)
    net = build(make("model", "sequential", input=[1, 6, 6], layers=layers)).eval()
    x = net.spec.example(2).float()
    wanted = net(x)
    assert net.runtime("event", "binary", calibration=x) is net
    assert runtime.mode_of(net) == "event"
    assert torch.equal(net(x), wanted)
    assert torch.equal(runtime.replay(net, x).output, wanted)


# -- batch invariance ----------------------------------------------------------------------------------------------


@st.composite
def integer_models(draw):
    """Decoders in integer arithmetic, wide enough that torch would take other paths for other batches."""
    table = draw(strategies.component_tables("model", only="decoder"))
    table |= {
        "d_model": draw(st.sampled_from([32, 72])),
        "vocab_size": 61,
        "head_dim": 0,
        "n_heads": 4,
        "n_kv_heads": 2,
    }
    table["quant"] = draw(strategies.class_tables(Quant))
    try:
        return make("model", **table)
    except Exception:
        from hypothesis import reject

        reject()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=integer_models(), data=st.data())
def test_logits_are_the_same_bits_alone_in_8_in_33_and_in_pieces(spec, data):
    torch.manual_seed(0)
    net = build(spec).eval()
    tokens = torch.randint(0, 61, (33, data.draw(st.integers(1, min(24, net.longest or 24)))))
    cut = data.draw(cuts(tokens.shape[1]))
    testing.check_batch_invariance(net, tokens, spec.name, cut, (1, 8, 33))


def test_a_trained_size_too():
    net, tokens = quantise(model(d_model=192, vocab_size=61), Quant(kv=True)), torch.randint(0, 61, (33, 40))
    testing.check_batch_invariance(net, tokens, "decoder", [1, 30, 2, 7], (8, 33))
    with ops.use("naive"), torch.no_grad():
        slow = net(tokens[:2])
    with torch.no_grad():
        assert torch.equal(net(tokens[:2]), slow), "compiled kernels give other bits than the naive twins"


@pytest.mark.parametrize("fault", ["norm", "attention", "scan", "float"])
def test_float_arithmetic_would_be_caught(fault, monkeypatch):
    """The check sees what torch's own kernels do with other batch sizes."""
    net, tokens = model(d_model=192), torch.randint(0, 61, (33, 40))
    if fault != "float":
        net = quantise(net)
    if fault == "norm":
        monkeypatch.setattr(
            deterministic,
            "row_sum",
            lambda x, form="sum": (
                (x.flatten().cumsum(0) * 0).sum() + x.square().sum(-1, keepdim=True) * (1 + 1e-6 * len(x))
            ),
        )
        fused = fused_row_ops.residual  # prompts of many tokens: norm and spikes in one
        monkeypatch.setattr(fused_row_ops, "residual", lambda x, *rest: fused(x.add_(1e-4 * len(x)), *rest))
    elif fault == "attention":
        monkeypatch.setattr(deterministic, "attend", lambda q, k, v, allowed=None: q * (1 + 1e-3 * len(q)))
    elif fault == "scan":
        inner = deterministic.scan
        monkeypatch.setattr(deterministic, "scan", lambda q, *rest: inner(q * (1 + 1e-6 * q.shape[1]), *rest))
    with pytest.raises(AssertionError, match="change"):
        testing.check_batch_invariance(net, tokens, "decoder", [1, 30, 2, 7], (8, 33))


def test_caches_in_eight_bits_are_smaller():
    from fastsnn_core.state import leaves, nbytes

    tokens = torch.randint(0, 61, (1, 12))
    sizes = {}
    for kv in (False, True):
        net = quantise(model(attention=[{"kind": "sliding_window", "window": 64}]), Quant(kv=kv))
        state = net(tokens, return_state=True)[1]
        sizes[kv] = nbytes(state)
        assert (torch.int8 in {t.dtype for _, t in leaves(state)}) == kv
    assert sizes[True] < 0.6 * sizes[False]


def test_spikes_leave_a_site_as_it_says():
    site = SpikeSite(make("neuron", "adaptive_threshold").build(4))
    x = torch.randn(1, 2, 4)
    assert site(x)[0].form == "count"
    runtime.switch_runtime(site, "event", steps=5)
    spikes = site(x)[0]
    assert isinstance(spikes, SpikeTensor)
    assert (spikes.form, spikes.coder, spikes.steps) == ("dense", "bitwise", 5)
