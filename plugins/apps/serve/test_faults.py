"""Clients that leave, stall or flood, and a server that is killed: slots and bytes come back, and it starts again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fastsnn_core import create, save
from fastsnn_serve import serve
from fastsnn_serve.testing import connect, decoder, idle, send, until

LEAVES = int(os.environ.get("FASTSNN_LEAVES", "60"))
SELF = Path("/proc/self")
pytestmark = pytest.mark.skipif(not SELF.is_dir(), reason="memory and connections are read from Linux' /proc")
LONG = {"prompt": "a", "max_tokens": 10**6, "ignore_eos": True, "stream": True}


def resident() -> int:
    """Bytes of memory of this process."""
    return int((SELF / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_clients_that_leave_give_back_slots_and_bytes(model: Any) -> None:
    """`LEAVES` disconnects in mid-stream, some before a byte was read."""
    with serve(model, port=0, block=False, max_streams=8, max_waiting=64, cache_bytes=0) as handle:
        engine, files = handle.app.state.engine, len(list((SELF / "fd").iterdir()))
        assert send(handle, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
        held: list[int] = []
        for i in range(LEAVES):
            links = [connect(handle, LONG) for _ in range(1 + i % 4)]
            for n, link in enumerate(links):
                if (i + n) % 3:
                    link.recv(400)
                link.close()
            if i in (LEAVES // 2, LEAVES - 1):
                assert until(lambda: idle(engine))
                held.append(resident())
        assert engine.state_in_use() == 0
        assert held[1] - held[0] < 16 << 20  # flat after the first half
        assert until(lambda: len(list((SELF / "fd").iterdir())) < files + 20)
        assert send(handle, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
        assert engine.metrics.total("fastsnn_streams_cancelled_total") >= LEAVES


def test_slow_readers_and_half_sent_requests_hold_nobody_up(model: Any) -> None:
    with serve(model, port=0, block=False, max_streams=4, body_seconds=0.5) as handle:
        slow = [connect(handle, LONG) for _ in range(2)]  # never read
        half = [socket.create_connection(("127.0.0.1", handle.port), timeout=30) for _ in range(40)]
        for i, link in enumerate(half):
            raw = b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"prompt"'
            link.sendall(raw[: len(raw) - i])  # heads and bodies, cut anywhere
        for _ in range(5):
            assert send(handle, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 4})[0] == 200
        for link in (*slow, *half):
            link.close()
        assert until(lambda: idle(handle.app.state.engine))


def test_a_hundred_megabytes_are_refused_and_not_kept(model: Any) -> None:
    with serve(model, port=0, block=False, max_body=1 << 20) as handle:
        before = resident()
        link = socket.create_connection(("127.0.0.1", handle.port), timeout=60)
        size = 100 << 20
        link.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        piece, sent = b"x" * (1 << 20), 0
        try:
            while sent < size:
                link.sendall(piece)
                sent += len(piece)
        except OSError:  # it has hung up on us
            pass
        link.settimeout(5)
        try:
            answer = link.recv(4096)
        except OSError:
            answer = b""
        assert b" 413 " in answer or sent < size
        assert resident() - before < 48 << 20
        assert send(handle, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200


def start(path: Any, port: int, *more: str, first: str = "") -> tuple[subprocess.Popen[str], Any]:
    """A server process that has said its address, and what `connect` wants of it; `first` is done before."""
    code = f"import sys; import fastsnn_serve; {first or 'pass'}; sys.exit(fastsnn_serve.command(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), "--port", str(port), *more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()

    class Address:
        """Its port."""

    address: Any = Address()
    address.port = int(line.split("/v1")[0].rsplit(":", 1)[1])
    return process, address


def test_a_disk_that_is_full_while_a_session_is_saved(tmp_path: Path) -> None:
    """No file may grow beyond 64 KiB: status 507, the session before it is whole, and it serves on."""
    path, folder = save(decoder(attention=(create("attention", "softmax"),)), tmp_path / "m.snn"), tmp_path / "s"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))"
    process, address = start(path, 0, "--sessions", str(folder), first=limit)
    try:
        assert send(address, "POST", "/sessions/save", {"name": "s", "prompt": "one"})[0] == 200
        before = (folder / "s.safetensors").read_bytes()
        status, said = send(address, "POST", "/sessions/save", {"name": "s", "prompt": "two " * 200})
        assert (status, said["error"]["code"]) == (507, "cannot_write")
        assert "File too large" in said["error"]["message"]
        assert (folder / "s.safetensors").read_bytes() == before
        assert [p.name for p in folder.iterdir()] == ["s.safetensors"]
        assert send(address, "POST", "/sessions/restore", {"name": "s"})[1]["tokens"] == 3
        assert send(address, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
    finally:
        process.kill()
        process.wait(20)


def test_killed_under_load_it_starts_again_at_the_same_port(tmp_path: Any) -> None:
    """It is back in the time that a first start takes, doubled, and five seconds."""
    path, begun = save(decoder(), tmp_path / "m.snn"), time.monotonic()
    process, address = start(path, 0)
    first = time.monotonic() - begun
    try:
        links = [connect(address, LONG) for _ in range(4)]
        for link in links:
            assert b"200 OK" in link.recv(64)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        ended = threading.Event()

        def rest() -> None:
            for link in links:
                try:
                    while link.recv(1 << 16):
                        pass
                except OSError:
                    pass
            ended.set()

        threading.Thread(target=rest, daemon=True).start()
        assert ended.wait(20)  # every client hears of it
        begun = time.monotonic()
        process, again = start(path, address.port)
        assert again.port == address.port
        assert send(again, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 3})[0] == 200
        assert time.monotonic() - begun < 2 * first + 5
    finally:
        process.kill()
        process.wait(20)
