"""Two replicas under Ray Serve: prompts go where their beginnings were read, one is killed under load, more come.

In ``nox -s clients``; Ray's own cluster on this machine.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from fastsnn_core import save
from fastsnn_serve.testing import bytes_text, connect, expected, until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TALES = [f"{name}: " + f"once upon a time there was a spike of {name}. " * 6 for name in ("iron", "wool", "tin", "ash")]


@pytest.fixture(scope="module")
def ray() -> Any:
    """Ray's cluster, with Serve at a free port."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: nox -s clients")
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: nox -s clients")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield SimpleNamespace(ray=ray, serve=serve, port=port)
    serve.shutdown()
    ray.shutdown()


@pytest.fixture
def deployed(ray: Any, integer: Any, tmp_path: Any) -> Any:
    """Deploys the tiny integer bundle with these options."""
    from fastsnn_serve.http.ray_app import build

    path = save(integer, tmp_path / "tiny.snn")

    def run(**options: str) -> None:
        ray.serve.run(build({"bundle": str(path), "cpus": "0.5"} | options), route_prefix="/")

    yield run
    ray.serve.delete("default")


def ask(port: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    """Status, headers and parsed answer."""
    from http.client import HTTPConnection

    link = HTTPConnection("127.0.0.1", port, timeout=120)
    link.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = link.getresponse()
    return answer.status, dict(answer.getheaders()), json.loads(answer.read())


def replicas(ray: Any) -> int:
    """Those that run."""
    found = ray.serve.status().applications["default"].deployments["fastsnn"].replica_states
    return int(found.get("RUNNING", 0))


def test_prompts_go_where_they_were_read_and_a_killed_replica_costs_no_answer(
    ray: Any, deployed: Any, integer: Any
) -> None:
    deployed(replicas="2", max_streams="8")
    assert until(lambda: replicas(ray) == 2, 120)
    homes: dict[str, set[str]] = {tale: set() for tale in TALES}
    cached = []
    for turn in range(4):
        for tale in TALES:
            prompt = tale + " And then" * turn
            status, heads, said = ask(ray.port, {"prompt": prompt, "max_tokens": 8, "seed": turn})
            assert (status, said["choices"][0]["text"]) == (
                200, bytes_text(expected(integer, list(prompt.encode()), 8, seed=turn)),
            )  # fmt: skip
            homes[tale].add(heads["x-replica"])
            if turn:
                cached.append(said["usage"]["prompt_tokens_details"]["cached_tokens"] / len(tale))
    assert all(len(found) == 1 for found in homes.values()), homes
    assert min(cached) > 0.9
    streamed = connect(ray, {"prompt": TALES[0], "max_tokens": 5, "stream": True, "seed": 1})
    text = b""
    while piece := streamed.recv(1 << 16):
        text += piece
        if b"[DONE]" in text:
            break
    assert text.count(b'"text":') >= 2
    killed(ray, integer, next(iter(homes[TALES[0]])))


def killed(ray: Any, integer: Any, victim: str) -> None:
    """That replica dies while both have work: every whole answer comes, streams say that they were cut."""
    (name,) = [a["name"] for a in ray.ray.util.list_named_actors(all_namespaces=True) if a["name"].endswith(victim)]
    actor = ray.ray.get_actor(name, namespace="serve")
    pid = ray.ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    long = {"max_tokens": 200_000, "ignore_eos": True, "stream": True}
    cut = connect(ray, {"prompt": TALES[0]} | long)
    assert b"200 OK" in cut.recv(64)
    began = threading.Event()

    def one(number: int) -> bool:
        if number > 20:
            began.set()
        tale, seed = TALES[number % len(TALES)], number % 5
        status, _, said = ask(ray.port, {"prompt": tale, "max_tokens": 40, "seed": seed})
        want = bytes_text(expected(integer, list(tale.encode()), 40, seed=seed))
        return (status, said["choices"][0]["text"]) == (200, want)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(one, number) for number in range(120)]
        assert began.wait(120)
        os.kill(pid, signal.SIGKILL)
        assert all(one.result() for one in asked)
    rest, end = b"", time.monotonic() + 60
    cut.settimeout(60)
    while b"that wrote this answer ended" not in rest and time.monotonic() < end:
        piece = cut.recv(1 << 16)
        assert piece, rest[-300:]
        rest = (rest + piece)[-4000:]
    assert b"[DONE]" not in rest
    assert until(lambda: replicas(ray) == 2, 120)  # another one was started


def test_more_replicas_come_with_load(ray: Any, deployed: Any) -> None:
    deployed(replicas="1-2", target="2", scale_seconds="1", max_streams="8")
    assert until(lambda: replicas(ray) == 1, 120)
    body = {"prompt": "a", "max_tokens": 10**6, "ignore_eos": True, "stream": True}
    links = [connect(ray, body) for _ in range(6)]
    assert until(lambda: replicas(ray) == 2, 120)
    for link in links:
        link.close()
    status, _, said = ask(ray.port, {"prompt": "a", "max_tokens": 3})
    assert status == 200, said
