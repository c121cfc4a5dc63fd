"""The server as its clients see it: the openai client, raw HTTP, and the engine underneath."""

from __future__ import annotations

import http.client
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, takewhile
from operator import eq
from typing import Any

import openai
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fastsnn_core import build, create, save
from fastsnn_core.state import leaves, nbytes, tree_map
from fastsnn_serve import Engine, app, serve
from fastsnn_serve.cache import PrefixCache, keys, worth_keeping
from fastsnn_serve.chat import ChatTemplate
from fastsnn_serve.engine import CHUNK
from fastsnn_serve.streams import Piece, Prompt, Stream, Want
from fastsnn_serve.writer import Writer
from fastsnn_text import ByteTokenizer, Sampling, attach, generate_ids, generate_text, train_bpe

TEXT = "Once upon a time a spike met a threshold. "


def decoder(**changes: Any) -> Any:
    """A tiny random decoder; its wide embedding makes its choices far from uniform, and not all the same."""
    torch.manual_seed(0)
    model = build(create("model", "decoder", **{"d_model": 32, "n_layers": 2, "n_heads": 2} | changes)).eval()
    torch.nn.init.normal_(model.embed.weight, std=0.15)
    attach(model, ByteTokenizer())
    return model


def expected(model: Any, ids: list[int], n: int, chunk: int = CHUNK, **sampling: Any) -> list[int]:
    """What the generation loop says."""
    return list(generate_ids(model, ids, n, Sampling(**sampling), stop=256, chunk=chunk))


def lasting(model: Any, ids: list[int], n: int, **sampling: Any) -> int:
    """A seed whose answer does not end before `n` tokens."""
    return next(seed for seed in range(1000) if len(expected(model, ids, n, seed=seed, **sampling)) == n)


def text_of(ids: list[int]) -> str:
    return ByteTokenizer().decode(ids)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """The models are tiny; threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    return decoder()


@pytest.fixture(scope="module")
def handle(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = save(model, tmp_path_factory.mktemp("serve") / "tiny.snn")
    with serve(path, port=0, block=False) as running:
        yield running


@pytest.fixture(scope="module")
def client(handle: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=handle.url + "/v1", api_key="none", max_retries=0)


def send(handle: Any, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """A raw request: status and parsed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", handle.port, timeout=60)
    raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    connection.request(method, path, raw, {"Content-Type": "application/json"})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, json.loads(data) if data[:1] in b"{[" else data.decode()


def until(condition: Any, seconds: float = 20.0) -> bool:
    """Does `condition` come true in time?"""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


# -- the openai client -------------------------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "fastsnn"
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("other")


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.8, "seed": 5}])
def test_completion_is_generate_ids(client: openai.OpenAI, model: Any, sampling: dict[str, Any]) -> None:
    ids = expected(model, list(TEXT.encode()), 24, **sampling)
    answer = client.completions.create(model="tiny", prompt=TEXT, max_tokens=24, **sampling)
    assert answer.choices[0].text == text_of(ids)
    assert answer.usage.completion_tokens == len(ids)
    assert answer.usage.prompt_tokens == len(TEXT)
    by_ids = client.completions.create(
        model="tiny", prompt=list(TEXT.encode()), max_tokens=24, extra_body={"top_k": -1}, **sampling
    )
    assert by_ids.choices[0].text == answer.choices[0].text
    streamed = list(client.completions.create(model="tiny", prompt=TEXT, max_tokens=24, stream=True, **sampling))
    assert "".join(c.choices[0].text for c in streamed) == answer.choices[0].text
    assert streamed[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    assert len({c.id for c in streamed}) == 1


def test_top_k_is_honoured(client: openai.OpenAI, model: Any) -> None:
    ids = expected(model, list(b"ab"), 16, temperature=2.0, top_k=2, seed=1)
    assert ids != expected(model, list(b"ab"), 16, temperature=2.0, seed=1)
    made = client.completions.create(
        model="tiny", prompt="ab", max_tokens=16, temperature=2.0, seed=1, extra_body={"top_k": 2}
    )
    assert made.choices[0].text == text_of(ids)


def test_many_prompts_many_choices(client: openai.OpenAI, model: Any) -> None:
    made = client.completions.create(model="tiny", prompt=["one", "two"], n=2, seed=7, max_tokens=8)
    assert [c.index for c in made.choices] == [0, 1, 2, 3]
    wanted = [expected(model, list(p), 8, seed=s) for p in (b"one", b"two") for s in (7, 8)]
    assert [c.text for c in made.choices] == [text_of(ids) for ids in wanted]
    assert made.usage.prompt_tokens == 6
    ids = client.completions.create(model="tiny", prompt=[[1, 2], [3]], max_tokens=2, temperature=0)
    assert [c.text for c in ids.choices] == [text_of(expected(model, p, 2, temperature=0.0)) for p in ([1, 2], [3])]


def test_chat(client: openai.OpenAI, model: Any) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
    ]
    prompt = "System: Be brief.\nUser: Hello\nAssistant:"
    want = text_of(expected(model, list(prompt.encode()), 20, seed=3))
    answer = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=20, seed=3)
    assert answer.choices[0].message.content == want
    assert answer.choices[0].message.role == "assistant"
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=20, seed=3, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == want
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_stop_strings(client: openai.OpenAI, model: Any) -> None:
    wholes = ((seed, text_of(expected(model, list(TEXT.encode()), 40, seed=seed))) for seed in range(50))
    pairs = ((seed, w[i : i + 2], w) for seed, w in wholes for i in range(6, len(w) - 4))
    seed, stop, whole = next(found for found in pairs if "�" not in found[1] and found[2].index(found[1]) > 5)
    want = whole[: whole.index(stop)]
    assert "".join(generate_text(model, TEXT, 40, Sampling(seed=seed), stop=(stop,))) == want
    for given_stop in (stop, ["never there", stop]):
        answer = client.completions.create(model="tiny", prompt=TEXT, max_tokens=40, seed=seed, stop=given_stop)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (want, "stop")
        chunks = client.completions.create(
            model="tiny", prompt=TEXT, max_tokens=40, seed=seed, stop=given_stop, stream=True, logprobs=0
        )
        pieces = [c.choices[0] for c in chunks]
        assert "".join(p.text for p in pieces) == want
        offsets = [o for p in pieces if p.logprobs for o in p.logprobs.text_offset]
        assert offsets == sorted(offsets)
        assert max(offsets) < len(want)


def test_end_token_ends() -> None:
    model = decoder()
    ids = expected(model, [65], 200, seed=1)
    with torch.no_grad():
        model.embed.weight[256] = model.embed.weight[ids[4]] * 50  # now the end is likelier than anything
    ids = expected(model, [65], 200, seed=1)
    assert len(ids) < 200
    with TestClient(app(model)) as http_client:
        body = {"prompt": [65], "max_tokens": 200, "seed": 1}
        made = http_client.post("/v1/completions", json=body).json()
        scored = http_client.post("/v1/completions", json=body | {"logprobs": 1, "echo": True}).json()["choices"][0]
        chat = {"messages": [{"role": "user", "content": "A"}], "max_tokens": 200, "seed": 1, "logprobs": True}
        talk = http_client.post("/v1/chat/completions", json=chat).json()["choices"][0]
    assert made["choices"][0] == {"index": 0, "text": text_of(ids), "logprobs": None, "finish_reason": "stop"}
    assert made["usage"]["completion_tokens"] == len(ids)
    assert scored["logprobs"]["tokens"][-1] == "token_id:256"  # lm-eval takes the last token off
    assert len(scored["logprobs"]["token_logprobs"]) == 1 + len(ids) + 1
    assert scored["logprobs"]["text_offset"][-1] == len(scored["text"])
    assert talk["finish_reason"] == "stop"
    said = bytes(byte for token in talk["logprobs"]["content"] for byte in token["bytes"])
    assert said.decode("utf-8", "replace") == talk["message"]["content"]


def test_logprobs_and_echo_as_lm_eval_asks(client: openai.OpenAI, model: Any) -> None:
    """`echo`, `logprobs`, one token: it sums token_logprobs over the continuation; greedy where they are the maxima."""
    context, continuation = list(b"The cat sat on"), list(b" the mat")
    prompt = context + continuation
    made = client.completions.create(
        model="tiny", prompt=[prompt], max_tokens=1, logprobs=1, echo=True, seed=1234, temperature=0
    )
    found = made.choices[0].logprobs
    with torch.inference_mode():
        table = model(torch.tensor([prompt])).float().log_softmax(-1)[0]
    want = [float(table[i - 1, t]) for i, t in enumerate(prompt) if i]
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1:-1] == pytest.approx(want, abs=1e-5)
    assert len(found.tokens) == len(found.top_logprobs) == len(found.text_offset) == len(prompt) + 1
    assert [max(top.values()) for top in found.top_logprobs[1:-1]] == pytest.approx(
        table[:-1].max(-1).values.tolist(), abs=1e-5
    )
    for got, top in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True):
        assert got in top.values()
    assert made.choices[0].text == text_of(prompt + expected(model, prompt, 1, temperature=0.0))
    assert found.text_offset == list(range(len(prompt) + 1))
    nothing = client.completions.create(model="tiny", prompt="abc", max_tokens=0, logprobs=2, echo=True)
    assert nothing.choices[0].text == "abc"
    assert nothing.usage.completion_tokens == 0
    assert len(nothing.choices[0].logprobs.token_logprobs) == 3
    streamed = client.completions.create(
        model="tiny", prompt="abc", max_tokens=3, logprobs=2, echo=True, stream=True, seed=0
    )
    parts = [c.choices[0] for c in streamed]
    assert parts[0].text == "abc"
    assert sum(len(p.logprobs.tokens) for p in parts if p.logprobs) == 6


def test_echo_reads_long_prompts_in_chunks() -> None:
    model, prompt = decoder(), list((TEXT * 2).encode())
    with TestClient(app(model, chunk=16)) as http_client:
        body = {"prompt": prompt, "max_tokens": 5, "logprobs": 0, "echo": True, "seed": 4}
        made = http_client.post("/v1/completions", json=body).json()
        alone = http_client.post("/v1/completions", json=body | {"echo": False}).json()
    ids = expected(model, prompt, 5, chunk=16, seed=4)
    assert made["choices"][0]["text"] == text_of(prompt + ids)
    found = made["choices"][0]["logprobs"]["token_logprobs"]
    assert found[len(prompt) :] == alone["choices"][0]["logprobs"]["token_logprobs"]  # to the bit
    with torch.inference_mode():
        table = model(torch.tensor([prompt])).float().log_softmax(-1)[0]
    assert found[1 : len(prompt)] == pytest.approx(
        [float(table[i - 1, t]) for i, t in enumerate(prompt) if i], abs=1e-3
    )


def test_chat_logprobs(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
        temperature=0,
    )
    content = made.choices[0].logprobs.content
    assert len(content) == 4
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
    assert (
        "".join(bytes(b for t in content for b in t.bytes).decode("utf-8", "replace"))
        == made.choices[0].message.content
    )


def test_eight_clients_at_once(client: openai.OpenAI, model: Any) -> None:
    """Everybody gets what they would get alone."""
    prompts = [TEXT[i:] + str(i) for i in range(8)]
    wanted = [text_of(expected(model, list(p.encode()), 30, seed=i)) for i, p in enumerate(prompts)]

    def ask(i: int) -> str:
        if i % 2:
            return client.completions.create(model="tiny", prompt=prompts[i], max_tokens=30, seed=i).choices[0].text
        chunks = client.completions.create(model="tiny", prompt=prompts[i], max_tokens=30, seed=i, stream=True)
        return "".join(c.choices[0].text for c in chunks)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == wanted


# -- errors ------------------------------------------------------------------------------------------------------

BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt is missing"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": []}, "the prompt is empty"),
    ({"prompt": [[]]}, "the prompt is empty"),
    ({"prompt": ["a", ""]}, "the prompt is empty"),
    ({"prompt": 5}, "prompt: expected"),
    ({"prompt": [True]}, "prompt: expected"),
    ({"prompt": [1, "a"]}, "prompt: expected"),
    ({"prompt": [1, 999]}, "token id 999 is outside 0 … 256"),
    ({"prompt": [-1]}, "token id -1"),
    ({"prompt": "\ud800"}, "valid Unicode"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens: expected an integer from 0"),
    ({"prompt": "a", "max_tokens": "4"}, 'got "4"'),
    ({"prompt": "a", "max_tokens": 2.0}, "max_tokens: expected an integer"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens: expected an integer"),
    ({"prompt": "a", "max_tokens": 10**400}, "max_tokens: expected an integer"),
    ({"prompt": "a", "max_tokens": 1, "max_completion_tokens": 2}, "give one"),
    ({"prompt": "a", "temperature": 2.1}, "temperature: expected a number from 0 to 2"),
    ({"prompt": "a", "temperature": -0.1}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "temperature": 1e-40}, "greedy"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "top_p": 1e-320}, "top_p"),
    ({"prompt": "a", "top_k": -2}, "top_k"),
    ({"prompt": "a", "stop": ""}, "stop"),
    ({"prompt": "a", "stop": [1]}, "stop"),
    ({"prompt": "a", "stop": {"a": 1}}, "stop"),
    ({"prompt": "a", "seed": 2**64}, "seed"),
    ({"prompt": "a", "n": 0}, "n: expected"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "logprobs": True}, "logprobs"),
    ({"prompt": "a", "stream": "yes"}, "stream"),
    ({"prompt": "a", "stream_options": {}}, "needs stream"),
    ({"prompt": "a", "stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    ({"prompt": "a", "user": 1}, "user"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty is not supported"),
    ({"prompt": "a", "frequency_penalty": 1}, "frequency_penalty is not supported"),
    ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias is not supported"),
    ({"prompt": "a", "temprature": 1}, "did you mean temperature"),
    ({"prompt": "a", "\ud800": 1}, "no such field"),
    ({"prompt": "a", "model": 1}, "model: expected a string"),
    ({"prompt": ["a"] * 300}, "300 completions in one request"),
]
BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({}, "messages is missing"),
    ({"messages": []}, "at least one message"),
    ({"messages": "hi"}, "expected a list"),
    ({"messages": ["hi"]}, "messages[0]: expected an object"),
    ({"messages": [{"role": "bard", "content": "a"}]}, "messages[0].role: expected one of"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "no other parts"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}, "tool_calls is not supported"),
    ({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, "tools is not supported"),
    ({"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}, "tool_choice is not supported"),
    ({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "needs logprobs"),
    ({"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, "max_tokens"),
    ({"messages": [{"role": "user", "content": "a"}], "echo": True}, "echo: no such field"),
]


@pytest.mark.parametrize(("path", "cases"), [("/v1/completions", BAD_COMPLETIONS), ("/v1/chat/completions", BAD_CHATS)])
def test_bad_requests(handle: Any, path: str, cases: Any) -> None:
    for body, says in cases:
        status, answer = send(handle, "POST", path, body)
        assert status == 400, (body, answer)
        assert says in answer["error"]["message"], (body, answer)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["type"] == "invalid_request_error"


def test_bad_bodies(handle: Any) -> None:
    deep = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    nearly = b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}"
    odd = (
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"null",
        b'"text"',
        b'{"prompt": "a", "temperature": NaN}',
        b"1e999",
        deep,
        nearly,
    )
    for raw in (*odd, b'{"prompt": "a", "temperature": 1e999}', b'{"max_tokens": ' + b"9" * 5000 + b"}"):
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            status, answer = send(handle, "POST", path, raw)
            assert status == 400, (raw[:60], answer)
            assert answer["error"]["message"]


def test_paths_methods_models_sizes(handle: Any, model: Any) -> None:
    for method, path, body, status, code in (
        ("GET", "/v2/models", None, 404, "unknown_url"),
        ("POST", "/v1/completion", {"prompt": "a"}, 404, "unknown_url"),
        ("GET", "/v1/completions", None, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", None, 405, "method_not_allowed"),
        ("POST", "/v1/completions", {"prompt": "a", "model": "gpt"}, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", {"model": "\ud800"}, 404, "model_not_found"),
        ("GET", "/v1/models/%ff%00", None, 404, "model_not_found"),
    ):
        found, answer = send(handle, method, path, body)
        assert (found, answer["error"]["code"]) == (status, code)
    with serve(model, port=0, block=False, max_body=1000) as small:
        assert send(small, "POST", "/v1/completions", {"prompt": "a" * 500, "max_tokens": 1})[0] == 200
        found, answer = send(small, "POST", "/v1/completions", {"prompt": "a" * 9000, "max_tokens": 1})
        assert (found, answer["error"]["code"]) == (413, "request_too_large")


def test_client_raises_its_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="a", temperature=3)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "a"}],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )


def test_defaults_written_out_are_accepted(client: openai.OpenAI) -> None:
    client.completions.create(
        model="tiny", prompt="a", max_tokens=1, best_of=1, n=1, echo=False, frequency_penalty=0, presence_penalty=0.0,
        logit_bias={}, logprobs=None, stop=None, suffix=None, user="me", temperature=1, top_p=1,
    )  # fmt: skip
    client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a", "name": "me"}], max_tokens=1, tools=[], user="me",
        response_format={"type": "text"}, parallel_tool_calls=True, store=False, metadata={"a": "b"}, stop=[],
        tool_choice="none",
    )  # fmt: skip


@pytest.fixture(scope="module")
def quick() -> Any:
    """In-process, for many small requests."""
    with TestClient(app(decoder(d_model=16, n_layers=1), "tiny"), raise_server_exceptions=False) as http_client:
        yield http_client


NUMBERS = st.integers(-3, 3) | st.sampled_from([2**31, -(2**63), 2**64, 1e400, 1e-320, 0.5])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
NAMES = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop",
    "seed", "n", "echo", "logprobs", "top_logprobs", "stream", "stream_options", "user", "tools", "tool_choice",
    "response_format", "logit_bias", "best_of", "suffix", "presence_penalty", "tokens", "add_special_tokens",
]  # fmt: skip
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": JSON})


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]),
    odd=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
    messages=st.lists(MESSAGE, max_size=2),
    legal=st.booleans(),
)
def test_no_body_breaks_the_server(quick: Any, path: str, odd: dict[str, Any], messages: Any, legal: bool) -> None:
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    base = {"tokens": [1]} if path == "/detokenize" else base
    body = ({"max_tokens": 2} if path.startswith("/v1") else {}) | base | odd
    if "chat" in path and not legal:
        body["messages"] = messages
    if body.get("max_tokens") is None and path.startswith("/v1"):
        body["max_tokens"] = 2
    answer = quick.post(path, content=json.dumps(body))
    assert answer.status_code < 500, (body, answer.text)
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw=st.binary(max_size=40))
def test_no_bytes_break_the_server(quick: Any, raw: bytes) -> None:
    assert 400 <= quick.post("/v1/completions", content=raw).status_code < 500


# -- tokenizing, health, metrics ---------------------------------------------------------------------------------


def test_tokenize_and_back(handle: Any) -> None:
    status, answer = send(handle, "POST", "/tokenize", {"prompt": "héllo", "add_special_tokens": False})
    assert (status, answer["tokens"], answer["count"]) == (200, list("héllo".encode()), 6)
    assert answer["max_model_len"] is None  # constant state: no limit
    assert send(handle, "POST", "/detokenize", {"tokens": answer["tokens"]}) == (200, {"prompt": "héllo"})
    assert send(handle, "POST", "/detokenize", {"tokens": [257]})[0] == 400
    status, answer = send(handle, "POST", "/tokenize", {"messages": [{"role": "user", "content": "a"}]})
    assert bytes(answer["tokens"]) == b"User: a\nAssistant:"
    status, answer = send(handle, "GET", "/tokenizer_info")
    assert (status, answer["vocab_size"], answer["eos_token"]) == (200, 257, None)


def test_health_and_metrics(handle: Any, client: openai.OpenAI, model: Any) -> None:
    for path in ("/healthz", "/health", "/readyz"):
        assert send(handle, "GET", path) == (200, {"status": "ok"})

    def page() -> dict[str, float]:
        text = send(handle, "GET", "/metrics")[1]
        line = re.compile(r'(# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? (-?[\d.e+-]+|NaN|\+Inf))$')
        assert all(line.match(row) for row in text.splitlines())
        return {k: float(v) for k, v in (row.rsplit(" ", 1) for row in text.splitlines() if row[0] != "#")}

    before = page()
    client.completions.create(
        model="tiny", prompt="new prompt", max_tokens=70, seed=lasting(model, list(b"new prompt"), 70)
    )
    after = page()
    assert after["fastsnn_prompt_tokens_total"] - before["fastsnn_prompt_tokens_total"] == 10
    assert after["fastsnn_generated_tokens_total"] - before["fastsnn_generated_tokens_total"] == 70
    first, between = "fastsnn_time_to_first_token_seconds", "fastsnn_inter_token_seconds"
    assert after[f"{first}_count"] - before[f"{first}_count"] == 1
    assert after[f"{between}_count"] - before[f"{between}_count"] == 69
    assert after[f'{between}_bucket{{le="+Inf"}}'] == after[f"{between}_count"]
    assert 0 < after["fastsnn_spike_silent_fraction"] < 1
    assert after["fastsnn_requests_running"] == after["fastsnn_requests_waiting"] == 0
    assert after['fastsnn_requests_total{endpoint="/v1/completions",code="200"}'] > 0


# -- the engine --------------------------------------------------------------------------------------------------


class Said:
    """A stream and what it has said."""

    def __init__(self, engine: Engine, prompt: list[int], n: int, top: int | None = 0, **sampling: Any) -> None:
        self.pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self.prompt = Prompt(prompt)
        self.stream = Stream(self.prompt, Want(Sampling(**sampling), n, (), top), engine.tokenizer, self.hear)
        self.final: list[torch.Tensor] = []

    def hear(self, piece: Piece) -> None:
        if piece.finish is not None:
            self.final = [tensor.clone() for _, tensor in leaves(self.stream.state)]
        self.pieces.put(piece)

    def result(self) -> tuple[list[int], list[float | None]]:
        """Token ids and their log-probabilities: every bit counts."""
        tokens = []
        while True:
            piece = self.pieces.get(timeout=60)
            if piece.error is not None:
                raise piece.error
            tokens += [(t.token, t.logprob) for t in piece.tokens]
            if piece.finish is not None:
                return [t for t, _ in tokens if t != 256], [p for _, p in tokens]


def run(engine: Engine, *asked: Said) -> list[tuple[list[int], list[float | None]]]:
    engine.submit([said.stream for said in asked])
    return [said.result() for said in asked]


def idle(engine: Engine) -> bool:
    return not (engine.running or engine.waiting or engine.turns)


def test_state_is_constant(model: Any) -> None:
    """Between 10 and 500 tokens, and in the memory behind the tensors too."""
    engine, sizes = Engine(model), dict[int, tuple[int, int]]()
    said = Said(engine, [65], 501, seed=lasting(model, [65], 501))
    told = said.stream.emit

    def measure(piece: Piece) -> None:
        state = said.stream.state
        behind = sum(tensor.untyped_storage().nbytes() for _, tensor in leaves(state))
        sizes[len(said.stream.ids)] = (nbytes(state), behind)
        told(piece)

    said.stream.emit = measure
    run(engine, said)
    engine.close()
    late = {size for n, size in sizes.items() if n >= 10}
    assert max(sizes) == 501
    assert len(late) == 1
    assert engine.sizes.growth == 0


class Writes(torch.nn.Module):
    """A model that spoils the state it is given, as one that writes in place would."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.spec = inner, inner.spec

    def forward(self, tokens: Any, state: Any = None, **options: Any) -> Any:
        logits, new = self.inner(tokens, state, **options)
        new = tree_map(torch.clone, new)
        for _, tensor in leaves(state):
            tensor.fill_(3)
        return logits, new


def test_models_may_write_into_their_state(model: Any) -> None:
    engine, prompt = Engine(attached(Writes(model)), chunk=8), list(b"a prompt of some length")
    for i in range(2):  # the second time from the cache
        shared = Prompt(prompt)
        saids = [Said(engine, prompt, 9, seed=seed, top=0) for seed in range(3)]
        for said in saids:
            said.stream.prompt, shared.users = shared, 3
        assert [tokens for tokens, _ in run(engine, *saids)] == [
            expected(model, prompt, 9, chunk=8, seed=seed) for seed in range(3)
        ]
        assert shared.state is None  # nobody needs it any more
        longer = Said(engine, [*prompt, i], 3, seed=0)
        assert run(engine, longer)[0][0] == expected(model, [*prompt, i], 3, chunk=8, seed=0)
        scored = Said(engine, prompt, 9, seed=5)
        scored.stream.prompt = Prompt(prompt, score=0)
        scored.stream.prompt.users = 1
        assert run(engine, scored)[0][0] == expected(model, prompt, 9, chunk=8, seed=5)
    assert longer.prompt.cached > 0
    engine.close()


def test_streams_take_turns(model: Any) -> None:
    """A short answer does not wait for a long one."""
    engine, order = Engine(model), list[str]()
    long = Said(engine, list(b"long"), 100, seed=lasting(model, list(b"long"), 100))
    short = Said(engine, list(b"short"), 5, seed=lasting(model, list(b"short"), 5))
    for name, said in (("long", long), ("short", short)):
        told = said.stream.emit
        said.stream.emit = lambda piece, name=name, told=told: (order.append(name), told(piece))[1]
    run(engine, long, short)
    engine.close()
    assert order[:10] == ["long", "short"] * 5


def test_growing_states_respect_memory() -> None:
    model = decoder(attention=(create("attention", "softmax"),))
    engine = Engine(model, state_bytes=100_000)
    assert engine.sizes.growth == 2 * (2 * 32 * 4 + 1)  # two layers, keys and values of 32 floats and a flag per token
    assert engine.sizes.room(100_000) == 194
    with TestClient(app(model, state_bytes=100_000)) as http_client:
        answer = http_client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 192})
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert "holds 194" in answer.json()["error"]["message"]
        assert http_client.post("/tokenize", json={"prompt": "a"}).json()["max_model_len"] == 194
        wanted = text_of(expected(model, list(b"abc"), 120, seed=1))
        both = {"prompt": ["abc", "abc"], "max_tokens": 120, "seed": 1}  # one at a time: two do not fit
        assert [c["text"] for c in http_client.post("/v1/completions", json=both).json()["choices"]] == [wanted, wanted]


def test_a_failing_model_fails_its_stream_alone(model: Any) -> None:
    engine = Engine(model)
    real = engine.reader.run

    def sometimes(ids: list[int], state: Any, last: bool = True) -> Any:
        if ids[-1] == 66:
            raise RuntimeError("planted")
        return real(ids, state, last)

    engine.reader.run = sometimes  # type: ignore[method-assign]
    good, bad = Said(engine, [65], 5, temperature=0.0), Said(engine, [66], 5)
    engine.submit([bad.stream, good.stream])
    assert good.result()[0] == expected(model, [65], 5, temperature=0.0)
    with pytest.raises(RuntimeError, match="planted"):
        bad.result()
    engine.close()
    with TestClient(app(model)) as http_client:
        http_client.app.state.engine.reader.run = sometimes
        answer = http_client.post("/v1/completions", json={"prompt": "B"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")
        assert "planted" in http_client.post("/v1/completions", json={"prompt": "B", "stream": True}).text


def connect(handle: Any, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    raw = json.dumps(body).encode()
    link = socket.create_connection(("127.0.0.1", handle.port), timeout=30)
    link.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
    return link


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees(model: Any, stream: bool) -> None:
    with serve(model, port=0, block=False, max_streams=1, max_waiting=1) as handle:
        engine, body = handle.app.state.engine, {"prompt": "a", "max_tokens": 10**6, "temperature": 0, "stream": stream}
        first = connect(handle, body)
        assert until(lambda: engine.running and len(engine.running[0].ids) > 3)
        second = connect(handle, body)
        assert until(lambda: len(engine.waiting) == 1)
        status, answer = send(handle, "POST", "/v1/completions", body)
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        with pytest.raises(openai.RateLimitError):
            openai.OpenAI(base_url=handle.url + "/v1", api_key="x", max_retries=0).completions.create(
                model="decoder", prompt="a"
            )
        second.close()
        assert until(lambda: not engine.waiting)
        assert engine.running
        first.close()
        assert until(lambda: not engine.running)
        assert engine.metrics.total("fastsnn_streams_cancelled_total") == 2
        assert send(handle, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200


def test_leaving_while_sending_is_no_fault(handle: Any, caplog: pytest.LogCaptureFixture) -> None:
    link = socket.create_connection(("127.0.0.1", handle.port), timeout=30)
    link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    time.sleep(0.05)
    link.close()
    metrics = handle.app.state.engine.metrics
    assert until(lambda: 'endpoint="/v1/completions",code="499"' in metrics.render())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_close_ends_streams_and_tells_them(model: Any) -> None:
    handle = serve(model, port=0, block=False)
    link = connect(handle, {"prompt": "a", "max_tokens": 10**6, "temperature": 0, "stream": True})
    assert until(lambda: bool(handle.app.state.engine.running))
    begun = time.monotonic()
    handle.close()
    handle.close()
    assert time.monotonic() - begun < 8
    text = b""
    while piece := link.recv(65536):
        text += piece
    assert b"shutting down" in text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", handle.port), timeout=5)


def test_one_client_may_come_right_back(model: Any) -> None:
    """With a single place and no queue, the answer is given when the place is free."""
    with TestClient(app(model, max_streams=1, max_waiting=0)) as http_client:
        for _ in range(30):
            assert http_client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def test_taken_port_is_an_error(handle: Any, model: Any) -> None:
    with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{handle.port}"):
        serve(model, port=handle.port, block=False)


# -- the prefix cache --------------------------------------------------------------------------------------------


def test_boundaries_kept() -> None:
    assert [k for k in range(1, 8) if worth_keeping(k, 7)] == [1, 2, 3, 4, 5, 6, 7]
    kept = [k for k in range(1, 401) if worth_keeping(k, 400)]
    assert len(kept) < 25
    assert {1, 2, 4, 8, 16, 32, 64, 128, 256, 400} <= set(kept)
    assert max(b - a for a, b in pairwise(kept)) <= 400 / 8


def test_budget_and_recency() -> None:
    cache = PrefixCache(budget=3 * 40, chunk=2)
    state = torch.zeros(10)
    for name in (b"a", b"b", b"c"):
        cache.put(name, state)
    one = keys([1, 2], 2)[0]
    cache.put(one, state)
    assert list(cache.snapshots) == [b"b", b"c", one]
    assert cache.find([1, 2, 3])[0] == 2
    assert cache.find([1, 2])[0] == 0  # without logits, the whole prompt is no hit
    cache.put(b"d", torch.zeros(20))
    assert list(cache.snapshots) == [one, b"d"]
    cache.put(b"huge", torch.zeros(100))
    assert b"huge" not in cache.snapshots
    assert cache.nbytes == 120
    state[0] = 1.0
    assert cache.snapshots[one].state[0] == 0  # its own copy


def test_cached_tokens_are_told(model: Any) -> None:
    with TestClient(app(model, "m", chunk=16)) as http_client:
        engine = http_client.app.state.engine

        def ask(messages: list[dict[str, str]]) -> Any:
            made = http_client.post(
                "/v1/chat/completions", json={"messages": messages, "max_tokens": 40, "seed": 1}
            ).json()
            assert until(lambda: idle(engine))
            return made["choices"][0]["message"], made["usage"]["prompt_tokens_details"]["cached_tokens"], made["usage"]

        talk = [{"role": "user", "content": "Tell me a story about spikes."}]
        reply, cached, usage = ask(talk)
        assert cached == 0
        again, cached, usage = ask(talk)
        assert (again, cached) == (reply, usage["prompt_tokens"])  # the very same prompt: all of it


def test_a_turn_is_cached_with_its_answer(model: Any) -> None:
    with TestClient(app(model, chunk=16)) as http_client:
        engine, prompt = http_client.app.state.engine, list(TEXT.encode())

        seed = lasting(model, prompt, 70, chunk=16)

        def ask(ids: list[int], n: int) -> Any:
            made = http_client.post("/v1/completions", json={"prompt": ids, "max_tokens": n, "seed": seed}).json()
            assert until(lambda: idle(engine))
            return made["choices"][0]["text"], made["usage"]["prompt_tokens_details"]["cached_tokens"]

        answer = expected(model, prompt, 70, chunk=16, seed=seed)
        assert ask(prompt, 70) == (text_of(answer), 0)
        longer = prompt + answer + [65, 66]
        wanted = text_of(expected(model, longer, 9, chunk=16, seed=seed))
        assert ask(longer, 9) == (wanted, len(longer) // 16 * 16)
        assert len(longer) // 16 * 16 > len(prompt) + 60


@pytest.fixture(scope="module")
def narrow() -> Any:
    """Small enough to run often; windows of 5 and blocks that do not line up with them."""
    layers = (create("attention", "gla"), create("attention", "sliding_window", window=5))
    return decoder(d_model=16, attention=layers)


PROMPTS = st.lists(
    st.tuples(
        st.sampled_from(["first", "second", "follow"]),  # how the prompt begins; follow: with a turn and its answer
        st.sampled_from([8, 16, 24, 40]) | st.integers(1, 45),
        st.just([]) | st.lists(st.integers(0, 3), max_size=12),
        st.just(9) | st.integers(1, 12),
    ),
    min_size=1,
    max_size=6,
)
BASES = {"first": [i * i % 251 for i in range(45)], "second": [9] + [i * i % 251 for i in range(1, 45)]}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prompts=PROMPTS, snapshots=st.sampled_from([0, 1, 3, 1000]), together=st.booleans(), patient=st.booleans()
)
@example(prompts=[("first", 40, [], 1), ("first", 16, [], 9)], snapshots=1000, together=False, patient=True)
@example(prompts=[("first", 16, [], 9), ("follow", 1, [2], 9)], snapshots=1000, together=False, patient=True)
def test_with_cache_as_without(narrow: Any, prompts: Any, snapshots: int, together: bool, patient: bool) -> None:
    """Random prompts that share beginnings, continued turns, evictions, alone or together: the same bits."""
    asked: list[tuple[list[int], int, int]] = []
    wanted: list[list[int]] = []
    for i, (base, cut, tail, n) in enumerate(prompts):
        begin = asked[-1][0] + wanted[-1] if base == "follow" and asked else BASES.get(base, BASES["first"])[:cut]
        asked.append((begin + tail, n, i))
        wanted.append(expected(narrow, begin + tail, n, chunk=8, seed=i))
    engine, fresh = Engine(narrow, chunk=8, max_streams=3), Engine(narrow, chunk=8, cache_bytes=0)
    engine.reader.cache.budget = snapshots * (engine.sizes.base + 257 * 4)
    saids = [Said(engine, ids, n, seed=seed) for ids, n, seed in asked]
    if together:
        found = run(engine, *saids)
    else:
        found = []
        for said in saids:
            found += run(engine, said)
            assert not patient or until(lambda: idle(engine))
    assert [tokens for tokens, _ in found] == wanted
    others = [Said(fresh, ids, n, seed=seed) for ids, n, seed in asked]
    assert found == run(fresh, *others)  # log-probabilities too
    for said, other in zip(saids, others, strict=True):  # and every bit of the state
        assert all(map(torch.equal, said.final, other.final))
        assert said.final
    engine.close()
    fresh.close()
    if snapshots == 1000 and patient and not together:
        for i, (said, (ids, *_)) in enumerate(zip(saids, asked, strict=True)):
            told = [a + answer for (a, *_), answer in zip(asked[:i], wanted[:i], strict=True)]
            shared = max((sum(1 for _ in takewhile(bool, map(eq, a, ids))) for a in told), default=0)
            assert said.prompt.cached >= min(shared, len(ids) - 1) // 8 * 8  # all there is to share


# -- templates, tokenizers, the command --------------------------------------------------------------------------


def test_plain_template_carries_a_reply_over() -> None:
    template = ChatTemplate(ByteTokenizer(), None)
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
    writer = Writer(tokenizer, ())
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


def attached(module: Any) -> Any:
    attach(module, ByteTokenizer())
    return module


def test_engine_reopens_and_refuses_when_closed(model: Any) -> None:
    engine = Engine(model)
    engine.start()
    engine.close()
    with pytest.raises(Exception, match="shutting down"):
        run(engine, Said(engine, [1], 1))
    engine.start()
    assert len(run(engine, Said(engine, [1], 1, temperature=0.0))[0][0]) == 1
    engine.close()
    assert threading.active_count() < 50


def test_ray_builder() -> None:
    from fastsnn_serve.ray_app import build as ray_build

    with pytest.raises(ValueError, match="expected bundle=PATH"):
        ray_build({"bundel": "x"})
    pytest.importorskip("ray.serve", reason="Ray is not installed: pip install fastsnn-serve[ray]")
    assert ray_build({"bundle": "x.snn", "replicas": "2"}) is not None
