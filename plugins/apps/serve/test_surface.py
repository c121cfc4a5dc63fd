"""The surface beyond plain text: sampling fields, best_of, JSON schemas, tools, responses, embeddings, keys, limits."""

from __future__ import annotations

import base64
import json
import math
import socket
import time
from typing import Any

import numpy as np
import openai
import pytest
import torch
from starlette.testclient import TestClient

from fastsnn_serve import app, serve
from fastsnn_serve.api.tools import Tools, Watch, calls_in
from fastsnn_serve.engine.sampler import Adjustments, Sampler
from fastsnn_serve.testing import TEXT, bytes_text, decoder, expected, lasting, send, until
from fastsnn_text import Sampling

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["spike", "silence"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["kind", "count", "tags", "maybe"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Bern", "Oslo"]}}, "required": ["city"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
DENSE = {"10": -100, "32": -100}  # no spaces: a random model writes many
ASK: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("fields", "adjust"),
    [
        ({"presence_penalty": -2.0}, Adjustments(presence=-2.0)),
        ({"frequency_penalty": -1.0}, Adjustments(frequency=-1.0)),
        ({"repetition_penalty": 0.2}, Adjustments(repetition=0.2)),
        ({"repeat_penalty": 0.2}, Adjustments(repetition=0.2)),
        ({"logit_bias": {"65": 12, "66": -100}}, Adjustments(bias=((65, 12.0), (66, -math.inf)))),
        ({"min_p": 0.3}, Adjustments(min_p=0.3)),
        ({"ignore_eos": True}, Adjustments(forbid_ends=-1)),
        ({"min_tokens": 7}, Adjustments(forbid_ends=7)),
    ],
)
def test_each_field_changes_logits_as_its_equation_says(
    client: openai.OpenAI, model: Any, fields: Any, adjust: Adjustments
) -> None:
    """An independent loop over the bare model, every token chosen by hand."""
    prompt, generator, made = list(b"spikes in spikes"), torch.Generator().manual_seed(3), list[int]()
    with torch.inference_mode():
        while len(made) < 20:
            row = model(torch.tensor([prompt + made]))[0, -1].double()
            for token in range(257):
                times, seen = made.count(token), token in made or token in prompt
                if seen:
                    row[token] = row[token] / adjust.repetition if row[token] > 0 else row[token] * adjust.repetition
                row[token] -= times * adjust.frequency + (times > 0) * adjust.presence
                row[token] += dict(adjust.bias).get(token, 0.0)
            if adjust.forbid_ends < 0 or len(made) < adjust.forbid_ends:
                row[256] = -math.inf
            chances = (row / 0.8).softmax(-1)
            chances[chances < adjust.min_p * chances.max()] = 0
            drawn = float(torch.rand(1, generator=generator, dtype=torch.float64)) * float(chances.sum())
            token = next(i for i, below in enumerate(chances.cumsum(0).tolist()) if below > drawn)
            if token == 256:
                break
            made.append(token)
    answer = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=20, temperature=0.8, seed=3, extra_body=fields
    )
    assert answer.choices[0].text == bytes_text(made)
    assert answer.usage.completion_tokens == len(made)
    plain = client.completions.create(model="tiny", prompt=prompt, max_tokens=20, temperature=0.8, seed=3)
    if not {"ignore_eos", "min_tokens"} & set(fields):
        assert plain.choices[0].text != answer.choices[0].text


def test_repetition_makes_tokens_rarer_on_both_sides_of_zero() -> None:
    sampler = Sampler(Sampling(), Adjustments(repetition=2.0), None, [0, 1], [])
    assert sampler.adjusted(np.array([1.0, -1.0, 0.5, -0.5], np.float32)).tolist() == [0.5, -2.0, 0.5, -0.5]


def test_forbidden_everything_ends() -> None:
    """No token may follow: the answer ends instead of failing."""
    with TestClient(app(decoder())) as http:
        ban = {str(i): -100 for i in range(257)}
        made = http.post("/v1/completions", json={"prompt": "a", "logit_bias": ban}).json()
        assert (made["choices"][0]["text"], made["choices"][0]["finish_reason"]) == ("", "stop")


def test_best_of_gives_the_likeliest(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.completions.create(model="tiny", prompt="ab", max_tokens=12, seed=5, logprobs=0, **more)

    every, best = ask(n=6).choices, ask(n=2, best_of=6)
    chances = [sum(c.logprobs.token_logprobs) / len(c.logprobs.tokens) for c in every]
    order = sorted(range(6), key=lambda i: -chances[i])
    assert [c.text for c in best.choices] == [every[i].text for i in order[:2]]
    assert best.usage.completion_tokens == ask(n=6).usage.completion_tokens
    with pytest.raises(openai.BadRequestError, match="cannot be streamed"):
        ask(n=1, best_of=2, stream=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_schema_is_followed(client: openai.OpenAI, seed: int, stream: bool) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'fastsnn-serve[grammar]'")
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    made: Any = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=400, seed=seed, response_format=form, stream=stream, logit_bias=DENSE
    )
    if stream:
        chunks = list(made)
        text, why = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, why = made.choices[0].message.content, made.choices[0].finish_reason
    found = json.loads(text)
    assert why == "stop"
    assert set(found) == set(SCHEMA["properties"])  # type: ignore[call-overload]
    assert found["kind"] in ("spike", "silence")
    assert isinstance(found["count"], int) and 0 <= found["count"] <= 99  # noqa: PT018
    assert len(found["tags"]) <= 2 and all(len(tag) <= 3 for tag in found["tags"])  # noqa: PT018
    assert found["maybe"] in (None, True, False)


def test_any_object_and_schemas_that_cannot_be(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'fastsnn-serve[grammar]'")
    made = client.completions.create(
        model="tiny", prompt="a", max_tokens=60, temperature=0, extra_body={"response_format": {"type": "json_object"}}
    )
    assert made.choices[0].text.startswith("{")
    for schema, says in (({"type": "unheard"}, "cannot be followed"), ("x", "an object, a JSON Schema")):
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError, match=says):
            client.chat.completions.create(model="tiny", messages=ASK, response_format=form)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_demanded_call_is_made(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'fastsnn-serve[grammar]'")
    tools: Any = [WEATHER] if choice == "required" else [{"type": "function", "function": {"name": "other"}}, WEATHER]
    made: Any = client.chat.completions.create(
        model="tiny",
        messages=ASK,
        max_tokens=300,
        seed=1,
        tools=tools,
        tool_choice=choice,
        stream=stream,
        logit_bias=DENSE,
    )
    if stream:
        chunks = [c.choices[0] for c in made]
        call = next(c.delta.tool_calls[0] for c in chunks if c.delta.tool_calls)
        assert not "".join(c.delta.content or "" for c in chunks)
        why = chunks[-1].finish_reason
    else:
        call, why = made.choices[0].message.tool_calls[0], made.choices[0].finish_reason
        assert made.choices[0].message.content is None
    assert (call.type, call.function.name, why) == (
        "function",
        "weather",
        "tool_calls" if choice == "required" else "stop",
    )
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Oslo")
    turns = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude={"index"})]},
             {"role": "tool", "tool_call_id": call.id, "content": "rain"}]  # fmt: skip
    assert client.chat.completions.create(model="tiny", messages=turns, tools=[WEATHER], max_tokens=2).choices


def test_calls_are_read_out_of_texts() -> None:
    tools = Tools((WEATHER,))
    call = '{"name": "weather", "arguments": {"city": "Bern"}}'
    for text, rest, n in (
        (f"I look.\n<tool_call>\n{call}\n</tool_call>", "I look.", 1),
        (f"<tool_call>{call}</tool_call><tool_call>{call}</tool_call>", "", 2),
        (call.replace("arguments", "parameters"), "", 1),
        (f"<tool_call>{call}", "", 1),
        ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', None, 0),
        ('<tool_call>{"name": "weather", "arguments": "{"}</tool_call>', None, 0),
        ('{"name": ["weather"]}', None, 0),
        ("no call", None, 0),
        ("{ not JSON", None, 0),
    ):
        said, found = calls_in(text, tools)
        assert (said, len(found)) == (text if rest is None else rest, n), text
        for size in (1, 3, 1000):  # streamed in any pieces: the same text, the same calls
            watch = Watch(tools)
            parts = "".join(watch.push(text[i : i + size]) for i in range(0, len(text), size))
            rest_said, late = watch.close()
            assert (parts + rest_said).strip() == said.strip(), (text, size)
            assert [c["function"] for c in late] == [c["function"] for c in found]


TOOLED = "{% if tools %}[{{ tools | tojson }}]{% endif %}{{ messages[-1].content }}"


def test_tools_reach_the_template_or_a_system_message(client: openai.OpenAI, handle: Any) -> None:
    body = {"messages": ASK, "tools": [WEATHER]}
    plain = send(handle, "POST", "/apply-template", body)[1]["prompt"]
    assert plain.startswith("System: You may call functions")
    assert '"name": "weather"' in plain
    assert (
        send(handle, "POST", "/apply-template", body | {"tool_choice": "none"})[1]["prompt"]
        == "User: Hello\nAssistant:"
    )
    model = decoder()
    model.meta = model.meta | {"chat_template": TOOLED}
    with TestClient(app(model)) as http:
        text = http.post("/apply-template", json=body).json()["prompt"]
        assert text.startswith('[[{"type": "function", "function": {"name": "weather"')
        assert http.post("/apply-template", json={"messages": ASK}).json()["prompt"] == "Hello"


def test_responses(client: openai.OpenAI, model: Any) -> None:
    prompt = b"System: Be brief.\nUser: Hello\nAssistant:"
    seed = lasting(model, list(prompt), 12)
    want = bytes_text(expected(model, list(prompt), 12, seed=seed))
    more: Any = {"model": "tiny", "instructions": "Be brief.", "max_output_tokens": 12, "extra_body": {"seed": seed}}
    whole = client.responses.create(input="Hello", **more)
    assert whole.output_text == want
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (len(prompt), 12)
    turns: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]
    events = list(client.responses.create(input=turns, stream=True, **more))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == want
    assert events[-1].response.output_text == want
    with pytest.raises(openai.BadRequestError, match="previous_response_id is not supported"):
        client.responses.create(input="a", previous_response_id="x", model="tiny")


def test_embeddings_are_the_mean_of_the_last_hidden_state(client: openai.OpenAI, model: Any) -> None:
    held: list[torch.Tensor] = []
    handle = model.norm.register_forward_hook(lambda _, args, y: held.append(y))
    try:
        with torch.inference_mode():
            model(torch.tensor([list(TEXT.encode())]))
    finally:
        handle.remove()
    want = held[0][0].mean(0).tolist()
    for form in ("float", None):  # None: base64, which the client asks for
        more: Any = {} if form is None else {"encoding_format": form}
        made = client.embeddings.create(model="tiny", input=[TEXT, "other"], **more)
        assert made.data[0].embedding == pytest.approx(want, abs=1e-4)
        assert made.data[1].embedding != pytest.approx(want, abs=1e-2)
        assert made.usage.prompt_tokens == len(TEXT) + 5
    with TestClient(app(model, chunk=7)) as http:  # read in pieces
        raw = http.post("/v1/embeddings", json={"input": TEXT, "encoding_format": "base64"}).json()
        found = torch.frombuffer(bytearray(base64.b64decode(raw["data"][0]["embedding"])), dtype=torch.float32)
        assert found.tolist() == pytest.approx(want, abs=1e-2)


def test_keys_and_request_ids(model: Any) -> None:
    with TestClient(app(model, api_keys=["s3cret", "ñandú"])) as http:
        for path in ("/v1/models", "/metrics", "/slots"):
            answer = http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert http.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert http.get(path, headers={"Authorization": "Basic s3cret"}).status_code == 401
            assert http.get(path, headers={"Authorization": "Bearer s3cret"}).status_code == 200
            assert http.get(path, headers={"Authorization": "Bearer ñandú".encode()}).status_code == 200
        assert http.get("/healthz").status_code == http.get("/").status_code == 200
        given = http.get("/healthz", headers={"X-Request-Id": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        assert len(http.get("/healthz", headers={"X-Request-Id": "a b"}).headers["x-request-id"]) == 32
        assert len(http.get("/v1/models").headers["x-request-id"]) == 32


def test_slots_and_time_limits(model: Any) -> None:
    with serve(model, port=0, block=False, max_streams=2, max_seconds=1.0, body_seconds=0.3) as handle:
        assert [row["state"] for row in send(handle, "GET", "/slots")[1]] == ["idle", "idle"]
        begun = time.monotonic()
        body = {"prompt": "a", "max_tokens": 10**6, "ignore_eos": True}
        status, answer = send(handle, "POST", "/v1/completions", body)
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")  # what was written by then
        assert 0.9 < time.monotonic() - begun < 20
        assert 1 < answer["usage"]["completion_tokens"] < 10**6
        link = socket.create_connection(("127.0.0.1", handle.port), timeout=30)
        link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in link.recv(4096).split(b"\r\n")[0] + b" "  # half a body
        link.close()
        assert until(lambda: not handle.app.state.engine.running)


def test_a_spike_look_changes_no_token(model: Any) -> None:
    with TestClient(app(model)) as http:
        body = {"prompt": TEXT, "max_tokens": 12, "seed": 3, "stream": True, "ignore_eos": True}

        def ask(**more: Any) -> list[Any]:
            lines = http.post("/v1/completions", json=body | {"stream_options": more}).text.splitlines()
            return [json.loads(row[6:]) for row in lines if row.startswith("data: {")]

        plain, seen = ask(), ask(spikes_every=3)
        text = ["".join(c["choices"][0]["text"] for c in chunks) for chunks in (plain, seen)]
        assert text[0] == text[1]
        looks = [c["choices"][0]["spikes"] for c in seen if "spikes" in c["choices"][0]]
        assert 3 <= len(looks) <= 5
        assert all(0 <= look["silent_bytes"] <= look["weight_bytes"] for look in looks)
        assert len(looks[0]["layers"]) > 4
        assert 0 < looks[0]["silent_fraction"] < 1
        assert not [c for c in plain if "spikes" in c["choices"][0]]


def test_the_sampler_walks_its_grammar_and_nothing_else() -> None:
    """A drawn token that the grammar does not take would be a fault of the mask: it is an error, not a text."""

    class Letters:
        """One of two letters, then the end."""

        def __init__(self) -> None:
            self.taken: list[int] = []

        def matcher(self) -> Letters:
            return self

        def allowed(self) -> torch.Tensor:
            return torch.tensor([i in ((2, 3) if not self.taken else (4,)) for i in range(5)])

        def take(self, token: int) -> None:
            self.taken.append(token)

        complete = False

    grammar = Letters()
    sampler = Sampler(Sampling(seed=1), Adjustments(), grammar, (), (4,))
    logits = torch.tensor([9.0, 9.0, 0.0, 0.0, 9.0])
    assert sampler.pick(logits) in (2, 3)
    assert sampler.pick(logits) == 4
    assert logits.tolist() == [9.0, 9.0, 0.0, 0.0, 9.0]  # the caller's are as they were
