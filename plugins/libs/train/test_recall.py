"""Perplexity as windows and as a stream, recall that a model with memory has and one without has not, their drawing."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from fastsnn_core import bundle
from fastsnn_text import ByteTokenizer, attach
from fastsnn_train.data.packing import Packed
from fastsnn_train.evaluation.cli import evaluate as command
from fastsnn_train.evaluation.evaluate import by_position, evaluate_text, nats
from fastsnn_train.evaluation.recall import TASKS, draw_heat_map, recall


class Knows(nn.Module):
    """Remembers every byte of the last `reach` tokens, and answers both tasks from that."""

    spec = None

    def __init__(self, reach):
        super().__init__()
        self.reach, self.weight = reach, nn.Parameter(torch.zeros(1))
        self.tokenizer = ByteTokenizer()

    def forward(self, tokens, state=None, *, return_state=False, last=False, reset=None):
        whole = tokens if state is None else torch.cat([state, tokens], 1)
        logits = torch.zeros(*tokens.shape, 257)
        offset = whole.shape[1] - tokens.shape[1]
        for row in range(len(tokens)) if not last else ():
            text = bytes(i % 256 for i in whole[row].tolist())
            for t in range(tokens.shape[1]):
                seen = text[max(0, offset + t + 1 - self.reach) : offset + t + 1]
                logits[row, t, self.say(seen)] = 1.0
        return (logits, whole) if return_state else logits

    def say(self, seen):
        """The next byte, by looking the question up."""
        if seen[-2:-1] == b"?" and (at := seen.find(b"#" + seen[-1:])) >= 0:
            return seen[at + 2]
        asked, stored = seen.rfind(b"The pass key is"), seen.find(b"The pass key is ")
        if asked > stored >= 0 and len(seen) - asked < 22:
            return seen[stored + len(seen) - asked]
        return 0


@pytest.mark.parametrize("task", list(TASKS))
def test_a_model_recalls_what_it_can_reach_and_nothing_else(task):
    found = recall(Knows(10_000), task, lengths=(150, 3000), depths=(0.0, 0.5, 1.0), samples=3, batch=2)
    assert found.accuracy == ((1.0,) * 3, (1.0,) * 3)
    near = recall(Knows(400), task, lengths=(150, 3000), depths=(0.0, 0.5, 1.0), samples=3)
    assert near.accuracy[0] == (1.0, 1.0, 1.0)
    assert near.accuracy[1] == (0.0, 0.0, 1.0)
    assert near.at(3000) == pytest.approx(1 / 3)


def test_texts_that_are_too_short_and_tasks_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="fact and question alone are"):
        recall(Knows(9), "passkey", lengths=(40,))
    with pytest.raises(ValueError, match="possible: passkey, mqar"):
        recall(Knows(9), "niah")
    with pytest.raises(ValueError, match="between 0 and 1"):
        recall(Knows(9), depths=(2.0,))


def test_recall_does_not_depend_on_the_batch(make):
    model = make(vocab_size=257).eval()
    assert recall(model, "mqar", lengths=(60,), samples=6) == recall(model, "mqar", lengths=(60,), samples=6, batch=1)


def test_heat_maps_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    grid = recall(Knows(400), "mqar", lengths=(50, 900), depths=2, samples=2)
    path = draw_heat_map(tmp_path / "new" / "recall.png", {"before": grid, "after": grid})
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_stream_is_scored_as_one_piece(make):
    model = make(vocab_size=257).double().eval()
    attach(model, ByteTokenizer())
    text = "the quick brown fox jumps over the lazy dog, and then some more of it"
    whole, pieces = (evaluate_text(model, text, seq_len=n, carry=True) for n in (1000, 7))
    assert pieces["nats_per_token"] == pytest.approx(whole["nats_per_token"], rel=1e-9)
    assert pieces["tokens"] == whole["tokens"] == len(text) - 1
    expected = float(nats(model, torch.tensor([list(text.encode())])).mean())
    assert whole["nats_per_token"] == pytest.approx(expected, rel=1e-6)
    assert whole["bits_per_byte"] == pytest.approx(expected / math.log(2), rel=1e-6)
    with pytest.raises(ValueError, match="no stride"):
        evaluate_text(model, text, carry=True, stride=3)


def test_position_buckets_do_not_depend_on_how_it_is_read(make, packed):
    model = make().double().eval()
    data = packed.with_length(100)
    found = by_position(model, data, [0, 40, 100], 3)
    tokens = torch.stack([data.block(i) for i in range(3)])
    table = nats(model, tokens, data.resets(tokens[:, :-1]))
    assert [row["nats"] for row in found] == pytest.approx([float(table[:, :40].mean()), float(table[:, 40:].mean())])
    assert [row["tokens"] for row in found] == [120, 180]
    assert isinstance(data, Packed)


def test_the_command_evaluates_draws_and_continues(make, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model = make(vocab_size=257)
    attach(model, ByteTokenizer())
    path, text = bundle.save(model, tmp_path / "m.snn"), tmp_path / "t.txt"
    text.write_text("some text " * 30)
    words = [str(path), "--text", str(text), "--seq-len", "64", "--carry", "--recall", "mqar", "--lengths", "60,90"]
    words += ["--samples", "1", "--depths", "2", "--heatmap", str(tmp_path / "h.png"), "--prompt", "so", "--json"]
    assert command([*words, "--max-tokens", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity"] > 1
    assert found["recall"]["mqar"]["lengths"] == [60, 90]
    assert found["samples"][0]["prompt"] == "so"
    assert (tmp_path / "h.png").is_file()
    with pytest.raises(SystemExit):
        command([str(path)])
    assert "say what to evaluate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--text", "{text}", "--seq-len", "1"), "must be at least 2, got 1"),
        (("--text", "{text}", "--seq-len", "0"), "must be at least 2, got 0"),
        (("--text", "{text}", "--stride", "0"), "must be at least 1"),
        (("--text", "{text}", "--stride", "600"), "--stride must be at most --seq-len"),
        (("--text", "{text}", "--begin", "0.5", "--end", "0.5"), "leaves nothing"),
        (("--text", "{text}", "--from", "0.5", "--to", "0.5"), "leaves nothing"),  # former names
        (("--text", "{text}", "--to", "2"), "must be at least 0 and at most 1"),
        (("--text", "nope.txt"), "--text nope.txt: there is no such file"),
        (("--recall", "pass"), "no 'pass'; did you mean 'passkey'?"),
        (("--recall", "mqar", "--lengths", "a"), "expected a whole number"),
        (("--recall", "mqar", "--heatmap", "/proc/x.png"), "--heatmap /proc/x.png cannot be written"),
        (("--recall", "mqar", "--heatmap", "x.txt"), "must end in .png"),
        (("--text", "{text}", "--heatmap", "x.png"), "--heatmap draws --recall"),
        (("--prompt", "x", "--max-tokens", "-3"), "must be at least 1"),
        (("--text", "{text}", "--runtime", "evnt"), "did you mean 'event'"),
        ((), "say what to evaluate"),
    ],
)
def test_the_command_refuses_before_a_model_is_loaded(words, says, tmp_path, capsys, monkeypatch):
    from fastsnn_core.cli import EXIT_USER, main

    monkeypatch.setattr(bundle, "load", lambda *_: pytest.fail("it loaded"))
    (tmp_path / "t.txt").write_text("words")
    given = [word.format(text=tmp_path / "t.txt") for word in words]
    try:
        status = main(["eval", str(tmp_path / "m.snn"), *given])
    except SystemExit as left:
        status = left.code
    assert status == EXIT_USER
    assert says in capsys.readouterr().err
