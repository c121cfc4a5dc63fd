"""The fused step against the model itself: equal bits of logits and states, on memory full of NaN; what is refused."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch

pytest.importorskip("numba")
pytest.importorskip("fastsnn_kernel_numba")

from fastsnn_core import Model, ops
from fastsnn_core.lowering import lower
from fastsnn_core.probe import probe
from fastsnn_core.spec import converter
from fastsnn_core.state import leaves
from fastsnn_integer.quantization import Quant, quantise
from fastsnn_model_decoder.prefill import LEAST, block_plans, prefill_applies

KINDS = {
    "gla": [{"kind": "gla", "rank": 4}],
    "linear": [{"kind": "linear", "decay": 0.2}, {"kind": "linear", "feature": "relu"}],
    "window": [{"kind": "sliding_window", "window": 7}],
    "softmax": [{"kind": "softmax"}],
    "hybrid": [{"kind": "hybrid"}],
}
REST = {
    "plain": {},
    "biases": {"n_kv_heads": 2, "qkv_bias": True, "out_bias": True, "qk_norm": True},
    "odd": {"tied": False, "head_dim": 6, "sites": ["attn_in", "head"], "d_ff": 41},
    "max": {"neuron": {"kind": "adaptive_max"}, "centred": ["attn_in", "ffn_hidden"], "feedforward": {"gated": False}},
    "burst": {"neuron": {"kind": "adaptive_max", "burst": 3}, "d_ff": 40},
    "sparse": {"neuron": {"kind": "adaptive_threshold", "dead_zone": 1.0, "limit": 7}, "n_heads": 1},
}


def network(quant=None, **fields):
    torch.manual_seed(0)
    feedforward = {"kind": "pulse", **fields.pop("feedforward", {})}
    table = {"kind": "decoder", "vocab_size": 37, "d_model": 24, "n_layers": 2, "n_heads": 4, **fields}
    model = converter().structure(table | {"feedforward": feedforward}, Model).build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return quantise(model, quant).eval()


def poison(stream):
    """Working memory may hold anything between two steps."""
    works = stream.stream.stepper.works
    for name in (
        "x",
        "y",
        "z",
        "hidden",
        "mixed",
        "counts",
        "index",
        "count",
        "acc",
        "sums",
        "sums_64",
        "narrow",
        "dots",
        "acc_64",
        "heads",
        "folds",
        "logits",
    ):
        for work in works:
            getattr(work, name).view("u1").fill(0xFF)
    stream.stream.stepper.score.view("u1").fill(0xFF)


@contextlib.contextmanager
def on_threads(number):
    """Steps on so many threads; the model itself stays on one, where it does not wait for busy neighbours."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def follow(model, tokens, prompt=5, threads=1):
    """Steps with both forms; the state at the end goes on in the model."""
    _, began = model(tokens[:, :prompt], return_state=True)
    wanted, state = [], began
    for t in range(prompt, tokens.shape[1]):
        logits, state = model(tokens[:, t : t + 1], state, return_state=True)
        wanted.append(logits[0, 0])
    with on_threads(threads):
        stream = model.fast(began)
        assert stream is not None, model.fast_step
        assert stream.stream.stepper.workers == threads
        for t, logits in enumerate(wanted, prompt):
            poison(stream)
            assert torch.equal(stream.step(int(tokens[0, t])), logits), f"token {t}"
    again = dict(leaves(stream.state()))
    for name, tensor in leaves(state):
        if not name.endswith((".k", ".v")):  # slots that hold nothing may hold anything
            assert torch.equal(again[name], tensor), name
    more = model(tokens[:, :3], state)
    assert torch.equal(model(tokens[:, :3], stream.state()), more)
    return stream


@pytest.mark.parametrize("rest", list(REST))
@pytest.mark.parametrize("kind", list(KINDS))
def test_equal_bits(kind, rest):
    model = network(attention=KINDS[kind], **REST[rest])
    follow(model, torch.randint(0, 37, (1, 24)))
    assert model.fast_step["kernel"] == "numba"


FOUR = {
    "Q4_1": Quant(bits=4),
    "Q4_0": Quant(bits=4, minimum=False, group=64),
    "tables": Quant(bits=4, table_bits=4),
    "tables, Q4_0": Quant(bits=4, minimum=False, table_bits=4),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rest", list(REST))
@pytest.mark.parametrize("quant", list(FOUR))
def test_four_bits(quant, rest, threads):
    """Odd widths, a last group that is short, gates; 4-bit rows are read by the step itself."""
    model = network(FOUR[quant], **{"attention": [*KINDS["gla"], *KINDS["hybrid"]], "vocab_size": 37} | REST[rest])
    follow(model, torch.randint(0, 37, (1, 12)), threads=threads)
    assert model.fast_step["kernel"] == "numba"


@pytest.mark.parametrize("k", [0.05, 40.0, 1e3, 1e4])
def test_four_bits_of_few_and_many_spikes(k):
    """From k = 1000 on, 16 bits do not hold a group; silent groups add nothing."""
    model = network(Quant(bits=4), neuron={"kind": "adaptive_threshold", "k": k}, d_ff=1700, d_model=48)
    follow(model, torch.randint(0, 37, (1, 9)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rest", list(REST))
@pytest.mark.parametrize("table_bits", [8, 4])
def test_ternary_weights(table_bits, rest, threads):
    """Odd widths, rows shorter than a tile; the step itself reads them, also where q and k differ in theirs."""
    changes = {"attention": [*KINDS["gla"], *KINDS["hybrid"]], "vocab_size": 37, "weights": "ternary"} | REST[rest]
    model = network(Quant(bits=2, table_bits=table_bits), **changes)
    follow(model, torch.randint(0, 37, (1, 12)), threads=threads)
    assert model.fast_step["kernel"] == "numba"


@pytest.mark.parametrize(("k", "threads"), [(0.05, 1), (40.0, 2), (1e3, 2), (1e4, 1)])
def test_ternary_weights_of_few_and_many_spikes(k, threads):
    """Counts of several entries, several lists, tasks that end inside a row; sums of 64 bits from k = 10⁴ on."""
    neuron = {"kind": "adaptive_threshold", "k": k}
    model = network(Quant(bits=2), weights="ternary", neuron=neuron, d_ff=1700, d_model=132, n_heads=2)
    follow(model, torch.randint(0, 37, (1, 6)), threads=threads)


@pytest.mark.parametrize("activation", ["silu", "relu2"])
@torch.inference_mode()
def test_norms_in_front_of_the_output_projections(activation):
    """Prompt kernels and the fused step have them: bits of the modules, which take a few tokens at a time."""
    model = network(
        out_norm=True, feedforward={"activation": activation, "hidden_norm": 1e-4}, attention=KINDS["softmax"]
    )
    gains = [m for name, m in model.named_modules() if name.endswith(("out_norm", "hidden_norm"))]
    assert len(gains) == 2 * len(model.layers)
    for i, norm in enumerate(gains):
        norm.weight.copy_((1 + torch.arange(len(norm.weight)) % (5 + i)) / 4)
    follow(model, torch.randint(0, 37, (1, 12)))
    tokens, outs, state = torch.randint(0, 37, (1, 60)), [], None
    assert prefill_applies(model, tokens)
    assert all(block_plans(model)[0])
    for piece in tokens.split(LEAST, 1):  # so few go through the modules
        y, state = model(piece, state, return_state=True)
        outs.append(y)
    assert torch.equal(model(tokens), torch.cat(outs, 1))


@pytest.mark.parametrize("threads", [1, 2])
def test_caches_grow_and_windows_turn_over(threads):
    attention = [{"kind": "softmax"}, {"kind": "sliding_window", "window": 70}]
    stream = follow(network(attention=attention), torch.randint(0, 37, (1, 210)), threads=threads)
    assert stream.stream.position == 210
    plan = lower(stream.model, "")
    token = 2 * 4 * plan.n_kv_heads * plan.head_dim  # bytes of a key and a value
    assert stream.nbytes == sum(token * (256, 128)[i % 2] for i in range(len(plan.blocks)))  # whole blocks of 64


def test_a_prompt_s_cache_has_no_more_room_than_it_takes():
    model = network(attention=[{"kind": "softmax"}])
    stream = model.fast(model(torch.randint(0, 37, (1, 100)), return_state=True)[1])
    plan = lower(model, "")
    token = 2 * 4 * plan.n_kv_heads * plan.head_dim
    assert stream.nbytes == len(plan.blocks) * token * 128  # whole blocks of 64


@pytest.mark.parametrize("mode", ["count", "event"])
@pytest.mark.parametrize("k", [0.3, 40.0, 1e4])
def test_few_and_many_spikes(k, mode):
    """k = 1e4 on 1700 hidden channels needs sums of 64 bits."""
    model = network(neuron={"kind": "adaptive_threshold", "k": k}, d_ff=1700).runtime(mode)
    follow(model, torch.randint(0, 37, (1, 9)))


def test_tables_in_float():
    for quant in (Quant(embed=False, head=True), Quant(embed=True, head=True)):
        follow(network(quant, tied=False), torch.randint(0, 37, (1, 9)))


@pytest.mark.parametrize("row", [0.0, 1.0, 1e30, -1e-30, 3e38])
def test_odd_tokens(row):
    """Rows that are all zero, all equal, tiny or huge: the same logits, or the same refusal."""
    model = network()
    model.embed.weight[3], model.embed.scale[3] = (0, 1.0) if row == 0 else (1, abs(row))
    model.embed.weight[4, ::2] = 0
    tokens = torch.tensor([[1, 2, 5, 6, 7, 3, 4, 3, 3, 8]])
    refused = []
    with torch.inference_mode():
        _, state = model(tokens[:, :5], return_state=True)
        stream = model.fast(state)
        for t in range(5, 10):
            poison(stream)
            try:
                logits, state = model(tokens[:, t : t + 1], state, return_state=True)
            except (ValueError, OverflowError) as error:
                refused.append(error)
                with pytest.raises(ValueError, match=r"must be finite|ended with an error"):
                    stream.step(int(tokens[0, t]))
                return
            assert torch.equal(stream.step(int(tokens[0, t])), logits[0, 0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["layers.0.attention_norm", "layers.1.feedforward_norm", "norm"])
def test_what_is_not_finite_is_named(where, value):
    model = network()
    with torch.inference_mode():
        _, state = model(torch.tensor([[1, 2, 3]]), return_state=True)
        model.get_submodule(where).weight.data[2] = value
        stream = model.fast(state)
        with pytest.raises(ValueError, match="counts must be"):
            model(torch.tensor([[4]]), state)
        with pytest.raises(ValueError, match="counts must be finite"):
            stream.step(4)
        with pytest.raises(ValueError, match="ended with an error"):
            stream.step(4)
        with pytest.raises(ValueError, match="outside 0"):
            model.fast(state).step(37)


def test_weights_that_change_are_seen():
    model = network()
    tokens = torch.randint(0, 37, (1, 9))
    follow(model, tokens)
    for site in model.modules():
        if hasattr(site, "dial_"):
            site.dial_("k", 0.7)
    follow(model, tokens)


def test_weights_that_read_the_same_lie_side_by_side():
    """No second copy; the model itself goes on with the same bits, few rows and many, and can be loaded and copied."""
    model, tokens = network(Quant(), d_ff=41), torch.randint(0, 37, (3, 40))
    fresh = network(Quant(), d_ff=41)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for _ in range(2):
        follow(model, tokens[:1, :9])
        a, f = model.layers[0].attention, model.layers[1].feedforward
        for group in ((a.q, a.k, a.v), (f.up, f.gate)):
            assert len({layer.weight.untyped_storage().data_ptr() for layer in group}) == 1
            tall = sum(len(layer.weight) for layer in group)
            assert all(layer.weight.stride() == (1, tall) for layer in group)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.inference_mode():
        for n, t in ((1, 1), (3, 1), (3, 7), (3, 40)):
            assert torch.equal(model(tokens[:n, :t]), fresh(tokens[:n, :t]))
    twin = copy.deepcopy(model)
    twin.load_state_dict(before)
    follow(twin, tokens[:1, :9])


def said(model, state):
    assert model.fast(state) is None
    assert model.fast_step["kernel"] is None
    return model.fast_step["why"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"quant": Quant(group=8)}, "scale per group"),
        ({"quant": Quant(kv=True), "attention": [{"kind": "softmax"}]}, "cache in 8 bits"),
        ({"sites": ["q", "ffn_in"]}, "q_site"),
        ({"sites": ["embed"]}, "embed_site"),
        ({"neuron": {"kind": "lif"}}, "neuron: Leaky has no fused form"),
        ({"neuron": {"kind": "adaptive_threshold", "top": 3}}, "top = 3"),
        ({"neuron": {"kind": "adaptive_max", "burst": 16}}, "burst = 16"),
    ],
)
def test_reasons(fields, why):
    model = network(**fields)
    _, state = model(torch.tensor([[1, 2]]), return_state=True)
    assert why in said(model, state)


def test_reasons_outside_the_spec():
    model = network()
    _, state = model(torch.tensor([[1, 2]]), return_state=True)
    with probe(model):
        assert "hook" in said(model, state)
    with ops.use("naive"):
        assert "no kernel set in use" in said(model, state)
    assert "one stream" in said(model, model(torch.tensor([[1], [2]]), return_state=True)[1])
    assert "training" in said(model.train(), state)
    model.eval().runtime("event", strict=True)
    assert "strict" in said(model, state)
    table = {"kind": "decoder", "vocab_size": 37, "d_model": 24, "n_layers": 1, "n_heads": 4}
    assert "float weights" in said(converter().structure(table, Model).build().eval(), state)


def test_a_step_that_is_not_compiled_yet_is_not_waited_for(monkeypatch):
    from fastsnn_kernel_numba import fused_decoder_compile as kernel

    text = pytest.importorskip("fastsnn_text.generate")
    model = network()
    began = list(kernel._making)  # an earlier test may have had it compiled
    asked = iter([False, False, True, True])
    monkeypatch.setattr(kernel, "step_is_compiled", lambda: next(asked))
    tokens = list(text.generate_ids(model, [1, 2, 3], 2 * text.AGAIN + 4, text.Sampling(temperature=0.0)))
    assert model.fast_step["kernel"] == "numba"  # asked for the third time
    assert tokens == list(text.generate_ids(model, [1, 2, 3], 2 * text.AGAIN + 4, text.Sampling(temperature=0.0)))
    state = model(torch.tensor([[1, 2]]), return_state=True)[1]
    model.fused = None
    monkeypatch.setattr(kernel, "step_is_compiled", lambda: False)
    assert model.fast(state, wait=False) is None
    assert "being compiled" in model.fast_step["why"]
    assert model.fast(state) is not None
    monkeypatch.undo()
    kernel.make()
    assert kernel.step_is_compiled()
    assert kernel._making == began


def test_generate_takes_it():
    text = pytest.importorskip("fastsnn_text.generate")
    model = network()
    fused = list(text.generate_ids(model, [1, 2, 3], 20, text.Sampling(temperature=0.8, seed=3)))
    assert model.fast_step["kernel"] == "numba"
    with ops.use("naive"):
        plain = list(text.generate_ids(model, [1, 2, 3], 20, text.Sampling(temperature=0.8, seed=3)))
    assert model.fast_step["kernel"] is None
    assert fused == plain
    assert len(fused) == 20
