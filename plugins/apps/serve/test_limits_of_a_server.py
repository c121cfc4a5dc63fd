"""What a server holds and for how long: memory of streams, the model's length, ends by signals, other origins."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from fastsnn_core import create, save
from fastsnn_serve import Engine, app
from fastsnn_serve.engine.engine import Refused
from fastsnn_serve.http.server import greeting
from fastsnn_serve.testing import Recorder, attached, connect, decoder, lasting, run_all_requests

SOFTMAX = {"attention": (create("attention", "softmax"),)}


@pytest.mark.parametrize(
    ("tokens", "quant"), [((5, 3), False), ((5, 200), False), ((300, 40), False), ((5, 3), True), ((5, 200), True)]
)
def test_a_stream_holds_no_more_than_it_was_let_in_for(tokens: tuple[int, int], quant: bool) -> None:
    model = decoder(**SOFTMAX)
    if quant:
        quantization = pytest.importorskip("fastsnn_integer.quantization", reason="fastsnn-integer is not installed")
        model = quantization.quantise(model, quantization.Quant())
        attached(model)
        model.fast(model(torch.zeros(1, 1, dtype=torch.long), return_state=True)[1])  # compiled before it is timed
    prompt, more = list(range(1, 200)) * 2, tokens[1]
    prompt = prompt[: tokens[0]]
    engine = Engine(model, cache_bytes=0)
    seed = lasting(model, prompt, more) if not quant else 0
    said = Recorder(engine, prompt, more, seed=seed)
    most = 0.0
    hear = said.stream.listener

    def watch(piece: Any) -> None:
        nonlocal most
        most = max(most, engine.state_in_use())
        hear(piece)

    said.stream.listener = watch
    run_all_requests(engine, said)
    engine.close()
    assert 0 < most <= said.stream.need


def held(stream: Any) -> int:
    """Every byte that a fused stream keeps: its caches and whatever else it has of its own, told by no counter."""
    arrays = [v for v in vars(stream).values() if hasattr(v, "nbytes")] + [a for m in stream.memory for a in m]
    return sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("tokens", [(5, 200), (300, 40), (64, 64), (65, 64)])
def test_a_served_fused_stream_holds_what_was_reserved_byte_for_byte(tokens: tuple[int, int]) -> None:
    quantization = pytest.importorskip("fastsnn_integer.quantization", reason="fastsnn-integer is not installed")
    model = quantization.quantise(decoder(**SOFTMAX), quantization.Quant())
    attached(model)
    model.fast(model(torch.zeros(1, 1, dtype=torch.long), return_state=True)[1])  # compiled before it is served
    engine, sizes = Engine(model, cache_bytes=0), [0]
    said = Recorder(engine, (list(range(1, 200)) * 2)[: tokens[0]], tokens[1])
    hear = said.stream.listener

    def watch(piece: Any) -> None:
        if hasattr(said.stream.state, "stream"):  # a `FastStream`; the last piece comes without
            sizes.append(held(said.stream.state.stream))
        hear(piece)

    said.stream.listener = watch
    run_all_requests(engine, said)
    engine.close()
    slack = 2 * engine.sizes.growth  # a token's numbers, and the records of where the caches are
    assert said.stream.need - slack <= max(sizes) <= said.stream.need


def test_the_models_own_length_bounds_a_request() -> None:
    model = decoder()
    model.meta = model.meta | {"max_positions": 64}
    with TestClient(app(model)) as client:
        chat = {"messages": [{"role": "user", "content": "Hi"}], "seed": 1}
        answer = client.post("/v1/chat/completions", json=chat)
        assert answer.status_code == 200  # without max_tokens: what is left of the length
        assert answer.json()["usage"]["total_tokens"] <= 64
        for body in ({"prompt": "a", "max_tokens": 64}, {"prompt": "a" * 70}):
            answer = client.post("/v1/completions", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
            assert "64" in answer.json()["error"]["message"]
        assert client.post("/tokenize", json={"prompt": "a"}).json()["max_model_len"] == 64
    with TestClient(app(model, max_model_len=0)) as client:
        assert client.post("/v1/completions", json={"prompt": "a" * 70, "max_tokens": 2}).status_code == 200


def test_a_model_of_learned_positions_reads_no_more_of_them() -> None:
    """Fewer than the server's own 33 tokens by which it measures a state, too."""
    model = decoder(learned_positions=12)
    with TestClient(app(model)) as client:
        assert client.post("/tokenize", json={"prompt": "a"}).json()["max_model_len"] == 12
        answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 9})
        assert answer.status_code == 200
        answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 10})
        assert (answer.status_code, "made for 12" in answer.text) == (400, True)


def test_what_other_servers_clients_send() -> None:
    neutral = {"repetition_penalty": 1.0, "min_p": 0, "ignore_eos": False, "cache_prompt": True, "stop_token_ids": []}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "c", "content": "2"}]  # fmt: skip
    with TestClient(app(decoder())) as client:
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1} | neutral).status_code == 200
        answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "typical_p": 0.1})
        assert "typical_p is not supported; only 1 is accepted" in answer.json()["error"]["message"]
        body = {"messages": turns, "max_tokens": 2, "chat_template_kwargs": {"enable_thinking": False}}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        call["function"]["arguments"] = "{"
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert "messages[1].tool_calls[0].function.arguments" in answer.json()["error"]["message"]


def test_pages_of_other_origins_and_the_log(caplog: Any) -> None:
    ask = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
    with TestClient(app(decoder(), cors=["http://a.example"], log=True)) as client:
        with caplog.at_level(logging.INFO, "fastsnn.serve"):
            answer = client.options("/v1/completions", headers=ask)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "http://a.example")
            assert client.options("/v1/completions", headers=ask | {"Origin": "http://b.example"}).status_code == 400
            client.post("/v1/completions", json={"prompt": ""})
        assert any("POST /v1/completions 400" in record.getMessage() for record in caplog.records)
    with TestClient(app(decoder())) as client:
        assert client.options("/v1/completions", headers=ask).status_code == 405


def test_nothing_is_taken_between_stop_and_end() -> None:
    engine = Engine(decoder())
    engine.start()
    results: list[Any] = []

    def ask() -> None:
        for _ in range(200):
            said = Recorder(engine, [1, 2], 2, seed=1)
            try:
                engine.submit([said.stream])
                results.append(said)
            except Refused:
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    engine.close()
    for thread in threads:
        thread.join(20)
    for said in results:  # everything that was taken is answered, if only with an error
        piece = said.deltas.get(timeout=5)
        assert piece.error is not None or piece.tokens or piece.finish


@pytest.mark.parametrize("what", ["submit", "ask"])
def test_a_stop_between_the_start_and_the_queue_is_seen(what: str, monkeypatch: Any) -> None:
    engine = Engine(decoder())
    start = engine.start

    def started_and_stopped() -> None:
        start()
        engine.stop()
        assert engine.thread is not None
        engine.thread.join(20)
        assert not engine.thread.is_alive()

    monkeypatch.setattr(engine, "start", started_and_stopped)
    given: Any = [Recorder(engine, [1, 2], 2).stream] if what == "submit" else lambda runner: iter([1])
    with pytest.raises(Refused, match="shutting down"):
        getattr(engine, what)(given)
    assert not engine.waiting
    assert not engine.jobs


@pytest.mark.parametrize("where", ["admit", "decode"])
def test_an_engine_that_died_answers_everybody_and_takes_nothing_more(where: str, monkeypatch: Any) -> None:
    engine = Engine(decoder())
    gate = threading.Event()

    def dies(*args: Any) -> None:
        gate.wait(20)
        raise SystemExit("a kernel ended the thread")

    monkeypatch.setattr(engine, where, dies)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    said = [Recorder(engine, [1, 2], 4, seed=lasting(engine.model, [1, 2], 4)) for _ in range(3)]
    start = engine.start
    if where == "admit":  # holds the queue's lock: who comes while it waits could not queue
        monkeypatch.setattr(engine, "start", lambda: None)
    engine.submit([one.stream for one in said[:2]])
    engine.submit([said[2].stream])  # queued while the thread is on its way out
    start()
    gate.set()
    for one in said:
        while (delta := one.deltas.get(timeout=20)).error is None:
            pass
        assert "the engine stopped: SystemExit" in str(delta.error)
    assert engine.thread is not None
    engine.thread.join(20)
    monkeypatch.setattr(engine, "start", start)
    with pytest.raises(Refused, match="the engine stopped"):
        engine.submit([Recorder(engine, [1], 1).stream])
    assert not engine.waiting


def test_a_batched_kernel_that_raises_ends_its_streams_and_no_later_one(monkeypatch: Any) -> None:
    engine = Engine(decoder())
    seed = lasting(engine.model, [1, 2], 4)
    with monkeypatch.context() as broken:
        broken.setattr(engine.runner, "step_many", lambda streams: (_ for _ in ()).throw(ValueError("counts are NaN")))
        for one in (said := [Recorder(engine, [1, 2], 4, seed=seed) for _ in range(2)]):
            engine.submit([one.stream])
        for one in said:
            with pytest.raises(ValueError, match="counts are NaN"):
                one.result()
    assert engine.alive
    assert len(run_all_requests(engine, Recorder(engine, [1, 2], 4, seed=seed))[0][0]) == 4
    engine.close()


def test_a_listener_that_fails_costs_nobody_else_an_answer() -> None:
    engine = Engine(decoder())
    seed = lasting(engine.model, [1, 2], 4)
    good, bad = (Recorder(engine, [1, 2], 4, seed=seed) for _ in range(2))

    def fails(delta: Any) -> None:
        raise ValueError("of the caller's own code")

    bad.stream.listener = fails
    engine.submit([bad.stream, good.stream])
    assert len(good.result()[0]) == 4
    assert engine.alive
    engine.close()


def test_a_thread_that_does_not_end_stays_the_owner(monkeypatch: Any) -> None:
    engine, inside, gate = Engine(decoder()), threading.Event(), threading.Event()
    step = engine.runner.step
    monkeypatch.setattr(engine.runner, "step", lambda *args: (inside.set(), gate.wait(20), step(*args))[2])
    seed = lasting(engine.model, [1, 2], 4)
    engine.submit([Recorder(engine, [1, 2], 4, seed=seed).stream])
    assert inside.wait(20)
    engine.close(timeout=0.1)
    owner = engine.thread
    assert owner is not None
    engine.start()
    assert engine.thread is owner  # no second one
    gate.set()
    engine.close()
    assert engine.thread is None


def test_sigterm_lets_streams_end(tmp_path: Any) -> None:
    model = decoder()
    path = save(model, tmp_path / "m.snn")
    seed = lasting(model, [97], 300)
    code = "import sys; import fastsnn_serve; sys.exit(fastsnn_serve.command(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.split("/v1")[0].rsplit(":", 1)[1])

        class Address:
            """What `connect` wants."""

        handle: Any = Address()
        handle.port = port
        link = connect(handle, {"prompt": [97], "max_tokens": 300, "seed": seed, "stream": True})
        assert b"200 OK" in link.recv(64)
        process.send_signal(signal.SIGTERM)
        held = b""
        while piece := link.recv(65536):
            held += piece
        assert b"[DONE]" in held  # it was finished, not cut off
        rest, errors = process.communicate(timeout=60)
        assert (process.returncode, rest.strip().splitlines()[-1], errors) == (0, "stopped", "")
    finally:
        process.kill()


def test_a_chat_without_a_template_is_said() -> None:
    assert "no chat template" in greeting("http://x", app(decoder()))
    model = decoder()
    model.meta = model.meta | {"chat_template": "{{ messages[0].content }}"}
    assert "no chat template" not in greeting("http://x", app(model))
