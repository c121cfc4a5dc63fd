"""Helpers for tests of servers and engines: a tiny model, raw requests, a stream that records its deltas."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import time
from typing import Any

import torch

from fastsnn_core import build, create
from fastsnn_core.state import leaves
from fastsnn_serve import Engine
from fastsnn_serve.engine import CHUNK
from fastsnn_serve.engine.streams import CompletionDelta, Prompt, SamplingParams, Stream
from fastsnn_text import ByteTokenizer, Sampling, attach, generate_ids

TEXT = "Once upon a time a spike met a threshold. "


def decoder(**changes: Any) -> Any:
    """A tiny random decoder; its wide embedding makes its choices far from uniform, and not all the same."""
    torch.manual_seed(0)
    model: Any = build(create("model", "decoder", **{"d_model": 32, "n_layers": 2, "n_heads": 2} | changes)).eval()
    torch.nn.init.normal_(model.embed.weight, std=0.15)
    attach(model, ByteTokenizer())
    return model


def attached(module: Any) -> Any:
    """The module with a byte tokenizer."""
    attach(module, ByteTokenizer())
    return module


def expected(model: Any, ids: list[int], n: int, chunk: int = CHUNK, **sampling: Any) -> list[int]:
    """What the generation loop says."""
    return list(generate_ids(model, ids, n, Sampling(**sampling), stop=256, chunk=chunk))


def lasting(model: Any, ids: list[int], n: int, **sampling: Any) -> int:
    """A seed whose answer does not end before `n` tokens."""
    return next(seed for seed in range(1000) if len(expected(model, ids, n, seed=seed, **sampling)) == n)


def bytes_text(ids: list[int]) -> str:
    """What the bytes say."""
    return ByteTokenizer().decode(ids)


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


class Recorder:
    """A stream and the deltas it has emitted."""

    def __init__(
        self, engine: Engine, prompt: list[int], n: int, top: int | None = 0, grammar: Any = None, **sampling: Any
    ) -> None:
        self.deltas: queue.SimpleQueue[CompletionDelta] = queue.SimpleQueue()
        self.prompt = Prompt(prompt)
        params = SamplingParams(Sampling(**sampling), n, (), top, grammar=grammar)
        self.stream = Stream(self.prompt, params, engine.tokenizer, self.hear)
        self.final: list[torch.Tensor] = []

    def hear(self, delta: CompletionDelta) -> None:
        """Called by the engine's thread."""
        if delta.finish is not None:
            self.final = [tensor.clone() for _, tensor in leaves(self.stream.state)]
        self.deltas.put(delta)

    def result(self) -> tuple[list[int], list[float | None]]:
        """Token ids and their log-probabilities: every bit counts."""
        tokens = []
        while True:
            delta = self.deltas.get(timeout=300)  # kernels may have to be compiled first
            if delta.error is not None:
                raise delta.error
            tokens += [(t.token, t.logprob) for t in delta.tokens]
            if delta.finish is not None:
                return [t for t, _ in tokens if t != 256], [p for _, p in tokens]


def run_all_requests(engine: Engine, *asked: Recorder) -> list[tuple[list[int], list[float | None]]]:
    """Submit together; wait for all."""
    engine.submit([said.stream for said in asked])
    return [said.result() for said in asked]


def idle(engine: Engine) -> bool:
    """Has it nothing to do?"""
    return not (engine.running or engine.waiting or engine.turns)


def connect(handle: Any, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """A request on a bare socket, whose answer nobody has read yet."""
    raw = json.dumps(body).encode()
    link = socket.create_connection(("127.0.0.1", handle.port), timeout=30)
    link.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
    return link
