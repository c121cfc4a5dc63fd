"""What the command says of a bundle: show, check, export, generate."""

from __future__ import annotations

import json

import pytest
import torch

from fastsnn_core import build, create, load, save
from fastsnn_core.cli import main
from fastsnn_integer.quantization import quantise

pytest.importorskip("fastsnn")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from fastsnn_text import attach, load_tokenizer

    torch.manual_seed(0)
    model = build(create("model", "decoder", d_model=32, n_layers=1, n_heads=2, vocab_size=257)).eval()
    attach(model, load_tokenizer("byte"))
    return save(model, tmp_path_factory.mktemp("b") / "m.snn")


def test_show_says_what_a_bundle_holds(bundle, tmp_path, capsys):
    quantised = load(bundle)
    quantised = quantise(quantised).runtime("event", steps=6)
    path = save(quantised, tmp_path / "q.snn")
    assert main(["show", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["runtime"]["mode"] == "event"
    assert data["numbers"]["int8"] == data["bytes"]["int8"] > 10_000
    assert data["milestones"][-1]["what"] == "quantise"
    assert main(["show", str(path)]) == 0
    text = capsys.readouterr().out
    assert "all intact" in text
    assert "runtime: event, bitwise/bitwise coder" in text
    assert "d_model = 32" in text


def test_check_reads_a_bundle_and_finds_damage(bundle, tmp_path, capsys):
    assert main(["check", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "every file is as it was written" in out
    assert "# contract: causal=true" in out
    assert main(["check", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    broken = save(load(bundle), tmp_path / "x.snn")
    weights = broken / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["check", str(broken)]) == 2
    assert "truncated" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["in out --to w8a", "in --to w8a out", "--to w8a in out"])
def test_export_in_any_order_prints_perplexity(bundle, tmp_path, monkeypatch, capsys, order):
    from fastsnn import commands

    monkeypatch.setattr(commands, "sample_prose", lambda: "A neuron keeps what it hears. " * 20)
    places = {"in": str(bundle), "out": str(tmp_path / "o.snn")}
    assert main(["export", *(places.get(word, word) for word in order.split())]) == 0
    out = capsys.readouterr().out
    assert "perplexity on Python's documentation: " in out
    assert load(places["out"]).spec.quant is not None


def test_generate_says_how_fast(bundle, capsys):
    assert main(["generate", str(bundle), "--prompt", "ab", "--greedy", "--max-tokens", "5", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["prompt"] == "ab"
    assert data["tokens_per_second"] > 0


def test_generate_answers_a_message(bundle, capsys):
    words = [
        "generate",
        str(bundle),
        "--prompt",
        "hi",
        "--greedy",
        "--max-tokens",
        "3",
        "--chat",
        "--system",
        "Be brief.",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"].strip() == said.strip()


def test_a_word_after_the_prompt_keeps_its_space():
    from fastsnn_text import TextStream

    class Words:
        """Words with a space in front, which a decoder takes off the first."""

        words = ("Once", "▁upon", "▁a", "▁time")

        def decode(self, ids):
            return "".join(self.words[i] for i in ids).replace("▁", " ").lstrip()

    stream = TextStream(Words(), [0])
    assert [stream.push(i) for i in (1, 2)] == [" upon", " a"]
    assert TextStream(Words()).push(1) == "upon"


def test_options_without_effect_and_targets_that_are_inputs_are_refused_before_the_work(bundle, tmp_path, capsys):
    text = tmp_path / "text.html"
    text.write_text("the quick brown fox " * 200)
    before = text.read_bytes()
    to = str(tmp_path / "out.snn")
    cases = (
        (["tune", str(bundle), "--text", str(text), "--silent", "0.5", "--criterion", "teal"], "goes with --loss"),
        (["tune", str(bundle), "--text", str(text), "--silent", "0.5", "--windows", "3"], "goes with --loss"),
        (["convert", str(bundle), "--calibration", str(text), "--to", to, "--html", str(text)], "--html"),
    )
    for words, says in cases:
        try:
            assert main(words) == 2
        except SystemExit as stopped:  # argparse
            assert stopped.code == 2
        assert says in capsys.readouterr().err
        assert text.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.html"]
