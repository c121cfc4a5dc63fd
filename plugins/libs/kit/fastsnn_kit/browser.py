"""A headless Chromium for the tests of pages: its DevTools protocol in the few lines that are needed of one."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("FASTSNN_SHOTS")  # a folder for screenshots to look at


class Browser:
    """A headless Chromium over its DevTools protocol: a WebSocket, in the few lines that are needed of one."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
             "--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={folder}",
             "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port_file, end = folder / "DevToolsActivePort", time.monotonic() + 60
        while not port_file.is_file() or not port_file.read_text().strip():
            assert time.monotonic() < end, "Chromium did not start"
            time.sleep(0.05)
        port = int(port_file.read_text().split()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(row for row in json.load(answer) if row["type"] == "page")
        path = page["webSocketDebuggerUrl"].split(f":{port}", 1)[1]
        self.link = socket.create_connection(("127.0.0.1", port), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.link.sendall(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.held, self.number, self.seen = b"", 0, list[dict[str, Any]]()
        while b"\r\n\r\n" not in self.held:
            self.held += self.link.recv(4096)
        self.held = self.held.split(b"\r\n\r\n", 1)[1]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def take(self, n: int) -> bytes:
        """So many bytes."""
        while len(self.held) < n:
            piece = self.link.recv(1 << 16)
            assert piece, "Chromium hung up"
            self.held += piece
        out, self.held = self.held[:n], self.held[n:]
        return out

    def frame(self) -> dict[str, Any]:
        """The next message."""
        whole = b""
        while True:
            first, length = self.take(2)
            if length > 125:
                length = struct.unpack(*((">H", self.take(2)) if length == 126 else (">Q", self.take(8))))[0]
            whole += self.take(length)
            if first & 0x80:
                return json.loads(whole)

    def do(self, method: str, **params: Any) -> Any:
        """One command's result; events meanwhile go into `seen`."""
        self.number += 1
        raw = json.dumps({"id": self.number, "method": method, "params": params}).encode()
        long = b"\xfe" + struct.pack(">H", len(raw)) if len(raw) < 1 << 16 else b"\xff" + struct.pack(">Q", len(raw))
        size = bytes([0x80 | len(raw)]) if len(raw) < 126 else long
        self.link.sendall(b"\x81" + size + b"\0\0\0\0" + raw)
        while True:
            found = self.frame()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]
            self.seen.append(found)

    def js(self, code: str) -> Any:
        """A value of the page."""
        found = self.do("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.js(code):
            assert time.monotonic() < end, f"never true: {code}; {self.js('document.body.innerText')}"
            time.sleep(0.05)

    def press(self, key: str, code: int, **more: Any) -> None:
        """A key."""
        for kind in ("keyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def shot(self, name: str) -> None:
        """A screenshot, where there is a folder for it."""
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            Path(SHOTS, f"{name}.png").write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End it."""
        self.link.close()
        self.process.kill()
        self.process.wait(20)

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """The window's size; `mobile` has two dots a pixel."""
        dots = 2 if mobile else 1
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=dots, mobile=mobile)

    def barriers(self) -> list[str]:
        """What axe-core finds against the rules of WCAG 2 on the page as it is; skips where it is not installed."""
        found = importlib.util.find_spec("axe_core_python")
        if found is None or found.origin is None:
            pytest.skip("axe-core-python is not installed")
        self.js(Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8") + "; 0")
        rows = self.js("axe.run().then(r => r.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html)]))")
        return [f"{rule}: {says}: {' | '.join(where[:3])}" for rule, says, where in rows]

    @property
    def faults(self) -> list[Any]:
        """Exceptions of the page, and what its console calls an error."""
        found = [e for e in self.seen if e["method"] == "Runtime.exceptionThrown"]
        entries = (e for e in self.seen if e["method"] == "Log.entryAdded")
        return found + [e for e in entries if e["params"]["entry"]["level"] == "error"]

    @property
    def asked(self) -> set[str]:
        """Every address the page asked for."""
        return {e["params"]["request"]["url"] for e in self.seen if e["method"] == "Network.requestWillBeSent"}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A fresh browser for a test, which is skipped where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    found = Browser(tmp_path / "profile")
    yield found
    found.close()
