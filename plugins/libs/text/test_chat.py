"""Conversations: what is streamed, kept and forgotten, and the commands of the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from fastsnn_core import build, create, save
from fastsnn_text import ByteTokenizer, ChatTemplate, Sampling, attach, generate_text
from fastsnn_text.chat import ChatSession, chat_prompt, silent_bytes
from fastsnn_text.chat_command import main

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made = build(create("model", "decoder", d_model=32, n_layers=2, n_heads=2)).eval()
    torch.nn.init.normal_(made.embed.weight, std=0.15)
    attach(made, ByteTokenizer())
    return made


def test_a_long_history_is_read_once_and_says_the_same(model: Any) -> None:
    session = ChatSession(model, system="Brief. " * 50, max_tokens=12, sampling=GREEDY)
    for turn, text in enumerate(("Hello", "And you? " * 30, "So?")):
        messages = [*session.messages, {"role": "user", "content": text}]
        ids = ChatTemplate(ByteTokenizer(), None).ids(messages)
        wanted = "".join(generate_text(model, ids, 12, GREEDY, stop=("\nUser:",)))
        assert "".join(session.say(text)) == wanted
        assert session.messages == [*messages, {"role": "assistant", "content": wanted}]
        assert session.turn["read_tokens"] == (len(ids) - 1) % 256 + 1
        assert session.stats()["all_turns"] == turn + 1
    assert session.messages[0]["role"] == "system"
    session.reset()
    assert [m["role"] for m in session.messages] == ["system"]


def test_a_reply_that_is_broken_off_is_forgotten(model: Any) -> None:
    session = ChatSession(model, max_tokens=12, sampling=Sampling(seed=1))
    reply = session.say("Hello")
    next(reply)
    reply.close()
    assert session.messages == []
    assert not session.stats()["all_turns"]


def test_silent_bytes_weigh_projections_by_their_size(model: Any) -> None:
    ids = list(b"once upon")
    found = silent_bytes(model, ids)
    assert 0 < found < 1
    for neuron in (m for m in model.modules() if type(m).__name__ == "AdaptiveThresholdModule"):
        neuron.k.fill_(1e-6)
    try:
        assert silent_bytes(model, ids) > 0.5 > found  # next to nothing fires
    finally:
        for neuron in (m for m in model.modules() if type(m).__name__ == "AdaptiveThresholdModule"):
            neuron.k.fill_(3.0)


def test_the_prompt_of_one_message(model: Any) -> None:
    ids, stops = chat_prompt(model, "Hi", "Brief.")
    assert (ByteTokenizer().decode(ids), stops) == ("System: Brief.\nUser: Hi\nAssistant:", ("\nUser:",))


def test_the_terminal(model: Any, tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    bundle = str(save(model, tmp_path / "m.snn"))
    session = ChatSession(model, max_tokens=9, sampling=GREEDY)
    first, second = ("".join(session.say(text)) for text in ("Hello", "More"))
    lines = ["/stats", "Hello", "", "More", "/stats", "/what", "/reset", "Hello", "/quit", "never"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main([bundle, "--max-tokens", "9", "--temperature", "0"]) == 0
    said, notes = capsys.readouterr()
    assert "no chat template" in notes
    at = [
        said.index(text)
        for text in ("nothing said yet", first.strip(), second.strip(), "silent bytes: ", "/reset  begin")
    ]
    assert at == sorted(at)
    assert said.rstrip().endswith("(a new conversation)\n" + first.strip())
    with pytest.raises(SystemExit) as caught:
        main([bundle, "--max-tokens", "0"])
    assert caught.value.code == 2
