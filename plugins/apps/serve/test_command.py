"""Chat templates, tokenizers, the command."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from typing import Any

import openai
import pytest
import torch
from starlette.testclient import TestClient

from fastsnn_core import save
from fastsnn_serve import Engine, app, serve
from fastsnn_serve.engine import CHUNK
from fastsnn_serve.engine.detokenizer import Detokenizer
from fastsnn_serve.http.chat_template import RequestChatTemplate
from fastsnn_serve.testing import TEXT, Recorder, attached, decoder, run_all_requests, send
from fastsnn_text import ByteTokenizer, Sampling, attach, generate_ids, train_bpe


def test_plain_template_carries_a_reply_over() -> None:
    template = RequestChatTemplate(ByteTokenizer(), None)
    first = template.ids([{"role": "user", "content": "Hi"}])
    second = template.ids(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": " Hello"},
            {"role": "user", "content": "x"},
        ]
    )
    assert bytes(second) == bytes(first) + b" Hello\nUser: x\nAssistant:"


CHATML = """\
{% for m in messages %}
{% if m.role == 'assistant' and not m.content %}{{ raise_exception('say something') }}{% endif %}
<|im_start|>{{ m.role }}
{{ m.content }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_chat_template_of_the_bundle(tmp_path: Any) -> None:
    tokenizer = train_bpe([TEXT * 20, "User: Hello, how are you? <|im_start|>assistant"], 300)
    model = decoder(vocab_size=300)
    attach(model, tokenizer)
    model.meta = model.meta | {"chat_template": CHATML}
    with serve(save(model, tmp_path / "bpe.snn"), port=0, block=False) as handle:
        client = openai.OpenAI(base_url=handle.url + "/v1", api_key="none", max_retries=0)
        messages: Any = [{"role": "user", "content": "Hello"}]
        text = "<|im_start|>user\nHello<|endoftext|>\n<|im_start|>assistant\n"
        ids = tokenizer.encode(text)
        assert tokenizer.end in ids
        assert send(handle, "POST", "/tokenize", {"messages": messages})[1]["tokens"] == ids
        wanted = list(generate_ids(model, ids, 12, Sampling(seed=9), stop=tokenizer.end, chunk=CHUNK))
        made = client.chat.completions.create(model="bpe", messages=messages, max_tokens=12, seed=9, logprobs=True)
        assert made.choices[0].message.content == tokenizer.decode(wanted)
        assert len(made.choices[0].logprobs.content) == len(wanted)
        with pytest.raises(openai.BadRequestError, match="say something"):
            client.chat.completions.create(model="bpe", messages=[{"role": "assistant", "content": ""}])
        assert send(handle, "GET", "/tokenizer_info")[1]["eos_token"] == "<|endoftext|>"
        echoed = client.completions.create(model="bpe", prompt=TEXT, max_tokens=6, echo=True, logprobs=3, seed=1)
        found = echoed.choices[0].logprobs
        assert echoed.choices[0].text.startswith(TEXT)
        assert all(
            echoed.choices[0].text.startswith(t, o)
            for t, o in zip(found.tokens, found.text_offset, strict=True)
            if o < len(TEXT)
        )


def test_long_texts_stay_cheap() -> None:
    """A stream's text is decoded in a window, and says what decoding all of it says."""
    tokenizer = train_bpe([TEXT * 20, "漢字 héé 🎉 " * 20], 300)
    ids = tokenizer.encode((TEXT + "漢字 🎉 ") * 40)
    writer = Detokenizer(tokenizer, ())
    assert "".join([*(writer.push(i, None)[0] for i in ids), writer.close()[0]]) == tokenizer.decode(ids)
    assert len(ids) > 300
    assert len(writer.stream.ids) < 70


def test_broken_chat_template_is_told_at_the_start(model: Any) -> None:
    changed = decoder()
    changed.meta = {"chat_template": "{% for %}"}
    with pytest.raises(ValueError, match="chat_template is broken"):
        app(changed)
    changed.meta = {"chat_template": "{{ messages.__class__.__mro__ }}"}
    with TestClient(app(changed)) as http_client:  # the sandbox holds
        answer = http_client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
        assert answer.status_code == 400


def test_command_serves_until_interrupted(model: Any, tmp_path: Any) -> None:
    path = save(model, tmp_path / "tiny.snn")
    code = (
        "import sys; import fastsnn_serve; heavy = {'torch', 'starlette', 'uvicorn', 'jinja2'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(fastsnn_serve.command(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), "--port", "0", "--name", "mine", "--max-streams", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line, curl = process.stdout.readline(), process.stdout.readline()
        assert "up to 3 streams" in line
        assert "/v1/completions" in curl
        url = re.search(r"http://[\d.:]+", line).group()
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=3)
        assert client.completions.create(model="mine", prompt="a", max_tokens=2).usage.completion_tokens <= 2
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
        assert (process.returncode, rest.strip(), errors) == (0, "stopped", "")
    finally:
        process.kill()


def test_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    from fastsnn_core.cli import main

    assert main(["serve", str(tmp_path / "nothing.snn")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_options_out_of_range(model: Any) -> None:
    with pytest.raises(ValueError, match="max_streams: expected at least 1"):
        Engine(model, max_streams=0)
    with pytest.raises(TypeError, match="cannot be served"):
        Engine(attached(torch.nn.Linear(2, 2)))


def test_engine_reopens_and_refuses_when_closed(model: Any) -> None:
    engine = Engine(model)
    engine.start()
    engine.close()
    with pytest.raises(Exception, match="shutting down"):
        run_all_requests(engine, Recorder(engine, [1], 1))
    engine.start()
    assert len(run_all_requests(engine, Recorder(engine, [1], 1, temperature=0.0))[0][0]) == 1
    engine.close()
    assert threading.active_count() < 50


def test_ray_builder() -> None:
    from fastsnn_serve.http.ray_app import build as ray_build

    with pytest.raises(ValueError, match="expected bundle=PATH"):
        ray_build({"bundel": "x"})
    for name, value in (
        ("replicas", "0"), ("replicas", "3-2"), ("replicas", "1-2-3"), ("cpus", "nan"), ("cpus", "inf"),
        ("target", "-1"), ("max_streams", "many"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}: expected"):
            ray_build({"bundle": "x", "replicas": "1-2", name: value})
    pytest.importorskip("ray.serve", reason="Ray is not installed: pip install fastsnn-serve[ray]")
    assert ray_build({"bundle": "x.snn", "replicas": "2"}) is not None


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 300, "not an address"])
def test_a_host_that_there_is_not_is_named(host: str) -> None:
    from fastsnn_core.errors import NetworkError
    from fastsnn_serve.http.server import listen

    with pytest.raises(NetworkError, match="is no address of this machine"):
        listen(host, 0)
