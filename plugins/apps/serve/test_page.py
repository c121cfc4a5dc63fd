"""The page at ``/`` in a headless Chromium: a chat by keyboard, spikes beside it, on a phone and in the dark."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fastsnn_serve import app, serve
from fastsnn_serve.page import source
from fastsnn_serve.testing import decoder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("FASTSNN_SHOTS")  # a folder for screenshots to look at


def test_the_page_asks_nobody_else_and_needs_no_build() -> None:
    text, policy = source()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "src=" not in text.replace('href="data:,"', "")
    assert policy.count("'sha256-") == 2
    assert "connect-src 'self'" in policy
    with TestClient(app(decoder(d_model=16, n_layers=1), "<b>x</b>")) as http:
        page = http.get("/", headers={"Accept": "text/html"})
        assert page.headers["content-security-policy"] == policy
        assert "<b>x" not in page.text
        assert "<!--" not in page.text.replace("<!doctype", "")


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
        size = bytes([0x80 | len(raw)]) if len(raw) < 126 else b"\xfe" + struct.pack(">H", len(raw))
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


@pytest.fixture
def browser(tmp_path: Path) -> Any:
    """A fresh one."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    found = Browser(tmp_path / "profile")
    yield found
    found.close()


def test_a_chat_by_keyboard_with_spikes_beside_it(browser: Browser) -> None:
    with serve(decoder(d_model=32, n_layers=4), port=0, block=False, name="tiny", api_keys=["k"]) as handle:
        browser.do("Emulation.setDeviceMetricsOverride", width=1200, height=800, deviceScaleFactor=1, mobile=False)
        browser.do("Page.navigate", url=handle.url + "/")
        browser.until("document.readyState === 'complete' && document.activeElement.id === 'text'")
        browser.js("document.getElementById('max_tokens').value = 48; document.getElementById('temperature').value = 0")
        browser.do("Input.insertText", text="Hello")
        browser.press("Enter", 13)
        browser.until("document.querySelector('.fault') !== null")  # no key yet: said, and the text is not lost
        assert "wants a key" in browser.js("document.querySelector('.fault').textContent")
        assert browser.js("document.getElementById('text').value") == "Hello"
        browser.js("document.getElementById('key').value = 'k'; document.getElementById('about').open = false")
        browser.press("Enter", 13)
        browser.until("!running && document.querySelectorAll('svg rect').length > 20")
        answer = browser.js("[...document.querySelectorAll('.turn')].at(-1).querySelector('.said').textContent")
        assert len(answer) > 10
        side = browser.js("[...document.querySelectorAll('.spikes')].at(-1).textContent")
        assert "Silent bytes per token" in side
        assert "tokens" in side and "cached" in side  # noqa: PT018
        assert browser.js("past.length") == 2
        browser.shot("desktop")

        browser.js("document.getElementById('max_tokens').value = 100000")
        browser.do("Input.insertText", text="Again")
        browser.press("Enter", 13)
        browser.until("running !== null")
        browser.press("Escape", 27)
        browser.until("running === null")
        browser.press("n", 78, modifiers=1)
        browser.until("document.querySelectorAll('.turn').length === 0")

        browser.js("document.getElementById('max_tokens').value = 40")
        browser.do("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
        browser.do("Input.insertText", text="On a phone, with a question that is longer than one line")
        browser.press("Enter", 13)
        browser.until("!running && document.querySelectorAll('svg rect').length > 20")
        assert browser.js("document.documentElement.scrollWidth") <= 360  # nothing sticks out
        browser.shot("phone")
        browser.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        dark = browser.js("getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(18, 22, 27)"
        browser.shot("phone-dark")
        browser.do("Emulation.setDeviceMetricsOverride", width=1200, height=800, deviceScaleFactor=1, mobile=False)
        browser.js("document.getElementById('about').open = true; document.getElementById('log').scrollTop = 0")
        browser.shot("desktop-dark")

        asked = {e["params"]["request"]["url"] for e in browser.seen if e["method"] == "Network.requestWillBeSent"}
        assert {url for url in asked if not url.startswith((handle.url, "data:"))} == set()
        faults = [e for e in browser.seen if e["method"] == "Runtime.exceptionThrown"]
        faults += [
            e for e in browser.seen if e["method"] == "Log.entryAdded" and "401" not in e["params"]["entry"]["text"]
            and e["params"]["entry"]["level"] == "error"
        ]  # fmt: skip
        assert faults == []
