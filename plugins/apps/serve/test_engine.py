"""The engine underneath: streams, states, failures; health and metrics."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

import openai
import pytest
import torch
from starlette.testclient import TestClient

from fastsnn_core import create
from fastsnn_core.state import leaves, nbytes, tree_map
from fastsnn_serve import Engine, app, serve
from fastsnn_serve.engine.streams import CompletionDelta, Prompt
from fastsnn_serve.testing import (
    Recorder,
    attached,
    bytes_text,
    connect,
    decoder,
    expected,
    lasting,
    run_all_requests,
    send,
    until,
)


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


def test_state_is_constant(model: Any) -> None:
    """Between 10 and 500 tokens, and in the memory behind the tensors too."""
    engine, sizes = Engine(model), dict[int, tuple[int, int]]()
    said = Recorder(engine, [65], 501, seed=lasting(model, [65], 501))
    told = said.stream.listener

    def measure(piece: CompletionDelta) -> None:
        state = said.stream.state
        behind = sum(tensor.untyped_storage().nbytes() for _, tensor in leaves(state))
        sizes[len(said.stream.ids)] = (nbytes(state), behind)
        told(piece)

    said.stream.listener = measure
    run_all_requests(engine, said)
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
        saids = [Recorder(engine, prompt, 9, seed=seed, top=0) for seed in range(3)]
        for said in saids:
            said.stream.prompt, shared.users = shared, 3
        assert [tokens for tokens, _ in run_all_requests(engine, *saids)] == [
            expected(model, prompt, 9, chunk=8, seed=seed) for seed in range(3)
        ]
        assert shared.state is None  # nobody needs it any more
        longer = Recorder(engine, [*prompt, i], 3, seed=0)
        assert run_all_requests(engine, longer)[0][0] == expected(model, [*prompt, i], 3, chunk=8, seed=0)
        scored = Recorder(engine, prompt, 9, seed=5)
        scored.stream.prompt = Prompt(prompt, score=0)
        scored.stream.prompt.users = 1
        assert run_all_requests(engine, scored)[0][0] == expected(model, prompt, 9, chunk=8, seed=5)
    assert longer.prompt.cached > 0
    engine.close()


def test_streams_take_turns(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short answer does not wait for a long one."""
    engine, order = Engine(model), list[str]()
    long = Recorder(engine, list(b"long"), 100, seed=lasting(model, list(b"long"), 100))
    short = Recorder(engine, list(b"short"), 5, seed=lasting(model, list(b"short"), 5))
    for name, said in (("long", long), ("short", short)):
        pick = said.stream.sampler.pick
        monkeypatch.setattr(
            said.stream.sampler, "pick", lambda row, name=name, pick=pick: order.append(name) or pick(row)
        )
    run_all_requests(engine, long, short)
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
        wanted = bytes_text(expected(model, list(b"abc"), 120, seed=1))
        both = {"prompt": ["abc", "abc"], "max_tokens": 120, "seed": 1}  # one at a time: two do not fit
        assert [c["text"] for c in http_client.post("/v1/completions", json=both).json()["choices"]] == [wanted, wanted]


def test_a_failing_model_fails_its_stream_alone(model: Any) -> None:
    engine = Engine(model)
    real = engine.runner.run

    def sometimes(ids: list[int], state: Any, last: bool = True) -> Any:
        if ids[-1] == 66:
            raise RuntimeError("planted")
        return real(ids, state, last)

    engine.runner.run = sometimes  # type: ignore[method-assign]
    good, bad = Recorder(engine, [65], 5, temperature=0.0), Recorder(engine, [66], 5)
    engine.submit([bad.stream, good.stream])
    assert good.result()[0] == expected(model, [65], 5, temperature=0.0)
    with pytest.raises(RuntimeError, match="planted"):
        bad.result()
    engine.close()
    with TestClient(app(model)) as http_client:
        http_client.app.state.engine.runner.run = sometimes
        answer = http_client.post("/v1/completions", json={"prompt": "B"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")
        assert "planted" in http_client.post("/v1/completions", json={"prompt": "B", "stream": True}).text


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
