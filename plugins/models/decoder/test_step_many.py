"""Streams that step together give the bits they have alone: random prompts, joins and orders, on poisoned memory."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("numba")
pytest.importorskip("fastsnn_kernel_numba")

from test_fast_decoding import on_threads

from fastsnn_core import Model, ops
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spec import converter
from fastsnn_core.state import leaves
from fastsnn_integer.quantization import Quant, quantise
from fastsnn_kernel_numba.fused_decoder_runtime import NumbaStepper
from fastsnn_model_decoder import fused_ready

SCHEDULES = int(os.environ.get("FASTSNN_ROUNDS", "0")) or 32  # of each model; a quarter on two threads
VOCAB, LENGTH = 37, 10


def counts(k):
    return {"kind": "adaptive_threshold", "k": k}


TERNARY = {"weights": "ternary", "quant": Quant(bits=2)}
MODELS = {
    "gla and window": {"attention": [{"kind": "gla", "rank": 4}, {"kind": "sliding_window", "window": 7}]},
    "softmax, biases, norms": {
        "attention": [{"kind": "softmax"}], "n_kv_heads": 2, "qkv_bias": True, "out_bias": True, "qk_norm": True,
    },
    "hybrid, odd widths": {"attention": [{"kind": "hybrid"}], "head_dim": 6, "d_ff": 41, "tied": False},
    "heads of 32": {
        "attention": [{"kind": "softmax"}, {"kind": "linear"}], "d_model": 64, "n_heads": 2, "n_kv_heads": 1,
    },
    "linear, sparse": {
        "attention": [{"kind": "linear", "decay": 0.2}],
        "neuron": {"kind": "adaptive_threshold", "dead_zone": 1.0, "limit": 7},
    },
    "many columns": {"attention": [{"kind": "linear"}], "d_ff": 2100, "neuron": counts(9)},
    "64-bit sums": {"attention": [{"kind": "linear"}], "d_ff": 1700, "neuron": counts(1e4)},
    "gates first": {"attention": [{"kind": "linear"}], "feedforward": {"kind": "pulse", "activation": "drelu"}},
    "four bits": {"attention": [{"kind": "gla", "rank": 4}, {"kind": "hybrid"}], "d_ff": 83, "quant": Quant(bits=4)},
    "four bits, tables": {
        "attention": [{"kind": "softmax"}], "quant": Quant(bits=4, minimum=False, table_bits=4), "neuron": counts(200),
    },
    "silent": {"attention": [{"kind": "gla", "rank": 4}], "neuron": counts(0.05)},
    "ternary": {"attention": [{"kind": "gla", "rank": 4}, {"kind": "hybrid"}], "d_ff": 83, **TERNARY},
    "ternary, wide, bursts": {
        "attention": [{"kind": "linear"}], "d_model": 132, "n_heads": 2, "d_ff": 1700, "neuron": counts(200), **TERNARY,
    },
    "ternary, 64-bit sums": {"attention": [{"kind": "linear"}], "d_ff": 1700, "neuron": counts(1e4), **TERNARY},
    "ternary, some 64-bit sums": {
        "attention": [{"kind": "softmax"}], "d_ff": 1700, "neuron": counts(2**24 / 1700), **TERNARY,
    },
    "ternary, silent": {
        "attention": [{"kind": "softmax"}], "d_ff": 131, "neuron": counts(0.05), "weights": "ternary",
        "quant": Quant(bits=2, table_bits=4),
    },
}  # fmt: skip


def network(quant=None, **fields):
    torch.manual_seed(0)
    table = {"kind": "decoder", "vocab_size": VOCAB, "d_model": 24, "n_layers": 2, "n_heads": 4, **fields}
    model = converter().structure(table, Model).build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return quantise(model, quant).eval()


def poison(stepper):
    """Working memory may hold anything between two steps."""
    scratch = (
        "x",
        "y",
        "z",
        "mixed",
        "counts",
        "index",
        "count",
        "sums",
        "sums_64",
        "dots",
        "heads",
        "folds",
        "logits",
        "acc",
        "acc_64",
        "lists",
    )
    works = [stepper.work, *(stepper.batch.works if stepper.batch else ())]
    for work in works:
        for name in (*scratch, "threshold"):
            getattr(work, name).view("u1").fill(0xFF)
    if stepper.batch:
        for array in (stepper.batch.used, stepper.batch.cursor, stepper.score, stepper.batch.dense):
            array.view("u1").fill(0xFF)
        for work in stepper.batch.works:
            work.count_bytes.view("u1").fill(0xFF)


def alone(model, prompts):
    """Every stream by itself: its tokens (the likeliest ones), its logits, its states at the end and the beginning."""
    found = []
    with on_threads(1):
        begun = [model(prompt, return_state=True)[1] for prompt in prompts]
    for prompt, state in zip(prompts, begun):
        stream = model.fast(state)
        assert stream is not None, model.fast_step
        tokens, logits = [int(prompt[0, -1])], []
        for _ in range(LENGTH):
            logits.append(stream.step(tokens[-1]))
            tokens.append(int(logits[-1].argmax()))
        found.append((tokens, logits, dict(leaves(stream.state())), state))
    return found


def follow(model, prompts, wanted, draw):
    """One random schedule: streams begin and pause at any step, those that step come in any order, and each reads one
    token or several."""
    streams, done = {}, [0] * len(prompts)
    together = 0
    while min(done) < LENGTH:
        left = [i for i, n in enumerate(done) if n < LENGTH]
        some = draw.sample(left, draw.randint(1, len(left)))
        for i in some:
            if i not in streams:
                streams[i] = model.fast(wanted[i][3], room=draw.choice([0, 0, 20]))
        stepper = streams[some[0]].made
        stepper.call[0]["dense_from"] = draw.choice([0.3, 0.3, 0.0, 0.6, 2.0])  # all ways, whatever measuring says
        stepper.call[0]["dense_least"] = draw.choice([0.0, 2.5])
        poison(stepper)
        ends = [draw.randint(done[i] + 1, LENGTH) if draw.random() < 0.4 else done[i] + 1 for i in some]
        pieces = [wanted[i][0][done[i] : end] for i, end in zip(some, ends)]
        out = model.read_many([streams[i] for i in some], pieces)
        together += sum(map(len, pieces)) > 1
        for i, end, logits in zip(some, ends, out):
            assert torch.equal(logits, wanted[i][1][end - 1]), f"stream {i}, tokens {done[i]} to {end}, of {some}"
            assert int(logits.argmax()) == wanted[i][0][end]
            done[i] = end
    for i, stream in streams.items():
        for name, tensor in leaves(stream.state()):
            if not name.endswith((".k", ".v")):  # slots that hold nothing may hold anything
                assert torch.equal(tensor, wanted[i][2][name]), f"stream {i}: {name}"
    return together


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", list(MODELS))
@torch.inference_mode()
def test_together_is_alone(name, threads):
    model, draw = network(**MODELS[name]), random.Random(name)
    prompts = [torch.randint(0, VOCAB, (1, draw.randint(1, 9))) for _ in range(6)]
    with on_threads(threads):
        wanted = alone(model, prompts)
        assert sum(follow(model, prompts, wanted, draw) for _ in range(max(1, SCHEDULES // threads**2)))


@pytest.mark.parametrize(
    "name", ["gla and window", "softmax, biases, norms", "four bits", "ternary", "ternary, some 64-bit sums"]
)
@torch.inference_mode()
def test_prompts_are_read_as_by_the_layers(name):
    """From the start, longer than a window and than a pass; beside a stream that steps; in one piece or in several."""
    model = network(**MODELS[name])
    prompts = [torch.randint(0, VOCAB, (1, n)) for n in (70, 3, 33)]
    with on_threads(1):
        wanted = [model(prompt, return_state=True, last=True) for prompt in prompts]
    streams = [model.fast(None) for _ in prompts]
    assert all(stream is not None for stream in streams), model.fast_step
    poison(streams[0].made)
    first, *others = (prompt[0].tolist() for prompt in prompts)
    streams[0].read(first[:41])
    out = model.read_many(streams, [first[41:], *others])
    for i, (logits, state) in enumerate(wanted):
        assert torch.equal(out[i], logits[0, -1]), i
        assert streams[i].stream.position == prompts[i].shape[1]
        again = model.fast(state)
        assert torch.equal(streams[i].step(5), again.step(5)), i
    assert len(streams[0].made.batch.works) == 32


@torch.inference_mode()
def test_what_is_wrong_in_a_piece_ends_its_stream_only():
    model = network(**MODELS["softmax, biases, norms"])
    one, other = model.fast(None), model.fast(None)
    out = model.read_many([one, other], [[1, 2, VOCAB], [1, 2]])
    assert "outside 0" in str(out[0])
    assert torch.equal(out[1], model.fast(None).read([1, 2]))
    assert torch.equal(one.read([1, 2]), out[1])  # nothing of the refused piece was read
    with pytest.raises(FastSNNError, match="at least one token"):
        one.read([])
    with pytest.raises(FastSNNError, match="2 streams, but tokens of 1"):
        model.read_many([one, other], [[1]])
    one.stream.memory[0][0][:] = float("nan")
    out = model.read_many([one, other], [[3] * 40, [3] * 40])
    assert "must be finite" in str(out[0])
    assert torch.equal(out[1], model.fast(None).read([1, 2, *[3] * 40]))
    with pytest.raises(FastSNNError, match="ended with an error"):
        one.read([1])


@torch.inference_mode()
def test_more_streams_than_one_pass_takes():
    model = network(**MODELS["gla and window"])
    prompts = [torch.randint(0, VOCAB, (1, 3)) for _ in range(35)]
    wanted = alone(model, prompts)
    streams = [model.fast(model(p, return_state=True)[1]) for p in prompts]
    for t in range(3):
        out = model.step_many(streams, [w[0][t] for w in wanted])
        assert all(torch.equal(y, w[1][t]) for y, w in zip(out, wanted))


@torch.inference_mode()
def test_ternary_streams_share_a_pass(monkeypatch):
    model = network(**MODELS["ternary"])
    streams = [model.fast(None) for _ in range(9)]
    passes, launch = [], NumbaStepper.launch

    def counted(self, places, streams, rows, *rest):
        passes.append(rows)
        launch(self, places, streams, rows, *rest)

    monkeypatch.setattr(NumbaStepper, "launch", counted)
    model.read_many(streams, [[1, 2, 3], *[[4]] * 8])
    assert passes == [11]


@torch.inference_mode()
def test_ternary_sums_that_32_bits_do_not_hold():
    neuron, pulse = counts(1e3), {"kind": "pulse", "activation": "drelu"}
    model = network(attention=[{"kind": "linear"}], d_ff=1700, n_layers=1, feedforward=pulse, neuron=neuron, **TERNARY)
    for layer in model.layers:
        layer.feedforward.up.scale.mul_(1e6)
        layer.feedforward.gate.scale.mul_(1e6)
        layer.feedforward.down.weight.fill_(0xAA)  # all of them 1
    seen = []
    model.layers[0].feedforward.down.register_forward_pre_hook(lambda _, args: seen.append(args[0].counts))
    wanted = [model(torch.tensor([[token]]))[0, -1] for token in range(5)]
    assert all(float(c.double().sum()) >= 2**31 for c in seen)
    model.layers[0].feedforward.down._forward_pre_hooks.clear()
    streams = [model.fast(None) for _ in wanted]
    assert streams[0] is not None, model.fast_step
    poison(streams[0].made)
    call = streams[0].made.call[0]
    call["dense_from"] = call["dense_least"] = 0  # not even then
    assert all(torch.equal(*pair) for pair in zip(model.step_many(streams, range(5)), wanted))


@torch.inference_mode()
def test_what_ends_one_stream_leaves_the_others():
    """NaN in one stream's state, a token that is none, a stream that ended before: the others' bits stay."""
    model = network(**MODELS["gla and window"])
    prompts = [torch.randint(0, VOCAB, (1, 4)) for _ in range(4)]
    wanted = alone(model, prompts)
    streams = [model.fast(model(p, return_state=True)[1]) for p in prompts]
    streams[1].stream.memory[0][0][:] = float("nan")
    tokens = [w[0][0] for w in wanted]
    tokens[2] = VOCAB
    out = model.step_many(streams, tokens)
    assert "must be finite" in str(out[1])
    assert "outside 0" in str(out[2])
    assert all(torch.equal(out[i], wanted[i][1][0]) for i in (0, 3))
    out = model.step_many(streams, [wanted[0][0][1], 1, wanted[2][0][0], wanted[3][0][1]])
    assert isinstance(out[1], FastSNNError)
    assert "ended with an error" in str(out[1])
    assert torch.equal(out[2], wanted[2][1][0])  # a refused token is no end
    assert all(torch.equal(out[i], wanted[i][1][1]) for i in (0, 3))


@torch.inference_mode()
def test_what_cannot_step_together_is_refused():
    model, other = network(), network()
    state = model(torch.tensor([[1, 2]]), return_state=True)[1]
    stream, there = model.fast(state), other.fast(state)
    with pytest.raises(FastSNNError, match="given twice"):
        model.step_many([stream, stream], [1, 1])
    with pytest.raises(FastSNNError, match="2 streams, but 1 token"):
        model.step_many([stream, there], [1])
    with pytest.raises(FastSNNError, match="fast"):
        model.step_many([state], [1])
    with pytest.raises(FastSNNError, match="another model"):
        stream.made.step_many([there.stream], [1])
    assert model.step_many([], []) == []
    a, b = model.step_many([stream, there], [3, 3])  # two plans take turns
    assert torch.equal(a, b)
    with ops.use("naive"):
        assert model.fast(state) is None


@torch.inference_mode()
def test_within_a_second_nobody_looks_whether_the_model_has_changed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(fused_ready, "time", SimpleNamespace(monotonic=lambda: now[0]))
    model = network(**MODELS["gla and window"])
    made = model.fast(None).made
    model.norm.weight.mul_(2.0)
    now[0] += 0.9
    assert model.fast_all([None], [0], within=1.0)[0].made is made
    assert model.fast_all([None], [0])[0].made is not made
    made = model.fused.made
    model.norm.weight.mul_(2.0)
    now[0] += 1.0
    assert model.fast_all([None], [0], within=1.0)[0].made is not made


@pytest.mark.parametrize("name", ["gla and window", "softmax, biases, norms"])
def test_a_stream_from_the_start_needs_no_mode_of_autograd(name):
    model = network(**MODELS[name])
    assert torch.is_grad_enabled()
    read = model.fast(None).read([1, 2, 3])
    with torch.inference_mode():
        assert torch.equal(read, model.fast(None).read([1, 2, 3]))


@pytest.mark.parametrize("name", ["gla and window", "softmax, biases, norms", "hybrid, odd widths", "heads of 32"])
@pytest.mark.parametrize("begin", [0, 2, 80])
@torch.inference_mode()
def test_a_stream_goes_on_from_the_last_of_several_documents(name, begin):
    """What a cache holds of documents before it is left behind, and the state that was given stays as it was."""
    model, tokens = network(**MODELS[name]), torch.randint(0, VOCAB, (1, 147))
    reset = torch.zeros(1, 147, dtype=torch.bool)
    reset[:, begin] = True
    state = model(tokens, reset=reset, return_state=True)[1]
    before = {key: t.clone() for key, t in leaves(state)}
    stream = model.fast(state)
    assert stream is not None, model.fast_step
    after = state
    for token in (5, 7, 11):
        wanted, after = model(torch.tensor([[token]]), after, return_state=True)
        assert torch.equal(stream.step(token), wanted[0, -1])
    assert all(torch.equal(t, before[key]) for key, t in leaves(state))
