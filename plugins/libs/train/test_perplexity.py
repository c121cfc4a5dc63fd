"""Perplexity of a text: every token once, a standard error, little memory, and a model that is left as it was."""

from __future__ import annotations

import math

import pytest
import torch

from fastsnn_core.errors import FastSNNError
from fastsnn_core.probe import probe
from fastsnn_text import ByteTokenizer, attach
from fastsnn_train import Packed, evaluate, evaluate_text, standard_error
from fastsnn_train.evaluation import figures
from fastsnn_train.evaluation.evaluate import position_nats
from fastsnn_train.evaluation.figures import SpikeTotals, nats
from fastsnn_train.evaluation.perplexity import scored_windows
from fastsnn_train.evaluation.recall import recall

TEXT = "".join(f"line {i} of a text that is not quite the same. " for i in range(12))


class Bytes(ByteTokenizer):
    """Bytes with a start token."""

    start = 256


@pytest.fixture
def model(make):
    found = make(vocab_size=257).train()
    attach(found, Bytes())
    return found


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("stride", [None, 1, 3, 7, 10])
@pytest.mark.parametrize("n", [2, 9, 10, 11, 20, 33])
def test_every_token_is_scored_once(n, stride, start):
    windows = scored_windows(n, 10, stride, start)
    scored = [i for w in windows for i in range(w.scored, w.end)]
    if start:
        wanted = list(range(n))
    elif stride in (None, 10):
        wanted = [i for i in range(n) if i % 10]  # the first of a disjoint window has nothing before it
    else:
        wanted = list(range(1, n))
    assert scored == wanted
    assert all(w.end - w.begin <= 10 - start and w.begin <= w.scored for w in windows)


@pytest.mark.parametrize("stride", [5, 16, 31])
def test_a_stride_gives_the_loss_of_every_token_in_its_own_window(model, stride):
    found = evaluate_text(model, TEXT, seq_len=32, stride=stride)
    ids = torch.tensor(list(TEXT.encode()))
    model.eval()
    losses = []
    for w in scored_windows(len(ids), 32, stride, False):
        row = nats(model, ids[None, w.begin : w.end])[0]
        losses += row[w.scored - w.begin - 1 :].tolist()
    assert found["tokens"] == len(losses) == len(ids) - 1
    assert found["nats_per_token"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(found["nats_per_token"] / math.log(2), rel=1e-9)


def test_the_standard_error_is_that_of_means_over_equal_windows():
    totals = [3.0, 5.0, 4.0, 9.0]
    wanted = float(torch.tensor(totals).std() / 2) / 2  # of four sums, over two tokens each
    assert standard_error(totals, [2] * 4) == pytest.approx(wanted)
    assert standard_error([3.0], [2]) is None
    assert standard_error([4.0, 2.0], [4, 2]) == 0.0  # the same loss per token


def test_the_standard_error_covers_the_spread_of_repeated_measurements():
    generator = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(300):
        counts = torch.randint(5, 50, (30,), generator=generator)
        level = 2 + torch.randn(30, generator=generator)  # windows differ, tokens in one are alike
        totals = (level * counts).tolist()
        means.append(sum(totals) / int(counts.sum()))
        errors.append(standard_error(totals, counts.tolist()))
    assert float(torch.tensor(means).std()) == pytest.approx(sum(errors) / len(errors), rel=0.15)


def test_windows_and_error_are_reported(model):
    found = evaluate_text(model, TEXT, seq_len=32)
    assert found["windows"] == -(-len(TEXT.encode()) // 32)
    assert found["perplexity_error"] == pytest.approx(found["perplexity"] * found["standard_error"])
    assert found["standard_error"] > 0
    assert evaluate_text(model, TEXT[:20], seq_len=32)["standard_error"] is None


def test_long_sequences_are_read_in_pieces_with_the_same_losses(model, monkeypatch):
    model.eval()
    tokens = torch.tensor(list(TEXT.encode()))[None, :120]
    reset = torch.zeros(1, 119, dtype=torch.bool)
    reset[0, 50] = True
    whole = nats(model, tokens, reset)
    monkeypatch.setattr(figures, "LOGITS", 16 * 257)
    monkeypatch.setattr(figures, "LEAST", 1)
    monkeypatch.setattr(figures, "SLICE", 5 * 257)
    lengths = []
    model.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    assert torch.allclose(nats(model, tokens, reset), whole, atol=1e-4)
    assert max(lengths) == 16


def test_fewer_windows_are_read_together_where_the_vocabulary_is_large(model, monkeypatch):
    monkeypatch.setattr(figures, "LOGITS", 70 * 257)
    rows = []
    model.register_forward_pre_hook(lambda module, args: rows.append(tuple(args[0].shape)))
    found = evaluate_text(model, TEXT, seq_len=32)
    assert max(rows) == (2, 31)
    monkeypatch.undo()
    assert evaluate_text(model, TEXT, seq_len=32)["nats_per_token"] == pytest.approx(found["nats_per_token"], rel=1e-5)
    assert max(rows) == (8, 31)


def test_no_record_of_a_site_outlives_its_call(model):
    """The memory of an evaluation does not grow with the number of sites."""
    import gc
    import weakref

    model.eval()
    alive, most = [], 0

    def each(name, record):
        nonlocal most
        alive.append(weakref.ref(record.x))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))

    with torch.no_grad(), probe(model, each):
        model(torch.zeros(1, 8, dtype=torch.long))
    assert len(alive) > 6
    assert most <= 2  # inputs that the residual stream still holds


def test_what_is_handed_on_is_what_a_trace_holds(model):
    model.eval()
    tokens, whole, piecewise = torch.arange(40)[None], SpikeTotals(), SpikeTotals()
    with torch.no_grad(), probe(model) as trace:
        model(tokens)
    whole.add(trace)
    with torch.no_grad(), probe(model, piecewise.add_record) as empty:
        model(tokens)
    assert piecewise.figures() == whole.figures()
    assert not empty
    model.runtime("event")
    with torch.no_grad(), probe(model) as trace:
        model(tokens)
    seen = {}
    with torch.no_grad(), probe(model, lambda name, record: seen.update({name: record.coding})):
        model(tokens)
    assert {name: record.coding for name, record in trace.items()} == seen
    assert all(coding is not None for coding in seen.values())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seq_len": 1}, "seq_len must be at least 2"),
        ({"seq_len": 0}, "seq_len must be at least 2"),
        ({"stride": 0}, "stride must be in 1"),
        ({"stride": 900}, "stride must be in 1"),
        ({"carry": True, "stride": 4}, "it has no stride"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(model, settings, says):
    with pytest.raises(FastSNNError, match=says):
        evaluate_text(model, TEXT, **settings)
    with pytest.raises(FastSNNError, match="at least 2 are needed"):
        evaluate_text(model, "x")


@pytest.mark.parametrize("fails", [True, False])
def test_a_model_in_training_stays_in_training_whatever_happens(model, fails):
    if fails:
        model.norm.register_forward_hook(lambda *_: (_ for _ in ()).throw(ArithmeticError("broken")))
    packed = Packed(torch.arange(200).numpy() % 200, 20)
    for call in (
        lambda: evaluate(model, packed),
        lambda: evaluate_text(model, TEXT),
        lambda: position_nats(model, packed),
        lambda: recall(model, "mqar", lengths=(60,), depths=1, samples=1),
    ):
        if fails:
            with pytest.raises(ArithmeticError):
                call()
        else:
            call()
        assert model.training
