"""What the server refuses, and that nothing a client sends breaks it."""

from __future__ import annotations

import json
import os
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fastsnn_serve import app, serve
from fastsnn_serve.testing import decoder, send

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
    ({"prompt": "a", "best_of": 2, "n": 3}, "best_of (2) must be at least n (3)"),
    ({"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    ({"prompt": "a", "presence_penalty": 2.5}, "presence_penalty: expected a number from -2 to 2"),
    ({"prompt": "a", "frequency_penalty": "1"}, "frequency_penalty: expected"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty: expected"),
    ({"prompt": "a", "min_p": 1.5}, "min_p: expected a number from 0 to 1"),
    ({"prompt": "a", "logit_bias": {"257": 1}}, "logit_bias: expected an object"),
    ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias: expected an object"),
    ({"prompt": "a", "logit_bias": {"5": True}}, "logit_bias: expected an object"),
    ({"prompt": "a", "logit_bias": {"five": 1}}, "logit_bias: expected an object"),
    ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format.type"),
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
    ({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, "tools[0].function"),
    ({"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}, "there are no tools"),
    ({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema"}}, "response_format"),
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
            tools=[{"type": "function", "function": {"name": "no name", "parameters": {}}}],
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


@settings(
    max_examples=int(os.environ.get("FASTSNN_FUZZ", "200")), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(
    path=st.sampled_from(
        ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"]
    ),
    odd=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
    messages=st.lists(MESSAGE, max_size=2),
    legal=st.booleans(),
)
def test_no_body_breaks_the_server(quick: Any, path: str, odd: dict[str, Any], messages: Any, legal: bool) -> None:
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    base = {"tokens": [1]} if path == "/detokenize" else base
    base = {"input": "a"} if path in ("/v1/responses", "/v1/embeddings") else base
    base |= {"max_output_tokens": 2} if path == "/v1/responses" else {}
    limited = "completions" in path
    body = ({"max_tokens": 2} if limited else {}) | base | odd
    if "chat" in path and not legal:
        body["messages"] = messages
    if body.get("max_tokens") is None and limited:
        body["max_tokens"] = 2
    answer = quick.post(path, content=json.dumps(body))
    assert answer.status_code < 500, (body, answer.text)
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw=st.binary(max_size=40))
def test_no_bytes_break_the_server(quick: Any, raw: bytes) -> None:
    assert 400 <= quick.post("/v1/completions", content=raw).status_code < 500
