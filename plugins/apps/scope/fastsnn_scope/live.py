"""A training run while it runs: the curves of its log on one page, which asks this process for new rows.

The log is what the jsonl tracker writes (``log.jsonl`` of the run's folder). The server listens on this machine alone.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastsnn_core.errors import FileError, MissingFileError
from fastsnn_core.subject import Data
from fastsnn_scope.page import csp_source, read_asset
from fastsnn_scope.payload import script_safe_json

LOG = "log.jsonl"


class RunLog:
    """The rows of a run's log so far; a last line that is still being written is read the next time."""

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        self.path = path / LOG if path.is_dir() else path
        if not self.path.is_file():
            raise MissingFileError(
                f"--live: {path} holds no {LOG}; train with --out {path} and the jsonl tracker, which is on by default"
            )

    def rows(self, after: int = 0) -> list[Data]:
        """Rows from number `after` on."""
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [self.row(n, line) for n, line in enumerate(lines) if n >= after and line]

    def row(self, number: int, line: str) -> Data:
        """One line."""
        try:
            found = json.loads(line)
        except ValueError:
            raise FileError(f"{self.path}:{number + 1} is no JSON object") from None
        if not isinstance(found, dict):
            raise FileError(f"{self.path}:{number + 1} is no JSON object")
        return {k: v for k, v in found.items() if not isinstance(v, float) or (v == v and abs(v) != float("inf"))}

    @property
    def name(self) -> str:
        """What the page calls the run."""
        return self.path.resolve().parent.name

    def page(self, *, follow: bool) -> str:
        """The page with the rows so far; with `follow` it asks for more every two seconds."""
        script, style = "\n" + read_asset("live.js"), "\n" + read_asset("page.css")
        asks = "connect-src 'self'; " if follow else ""
        rules = (
            f"default-src 'none'; {asks}style-src {csp_source(style)}; script-src {csp_source(script)}; base-uri 'none'"
        )
        told = script_safe_json({"name": self.name, "rows": self.rows(), "follow": follow})
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>SpikeScope: a training run</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
            f"{read_asset('live.html')}</main>\n"
            f'<script type="application/json" id="data">{told}</script>\n<script>{script}</script>\n</body>\n</html>\n'
        )


class LiveHandler(BaseHTTPRequestHandler):
    """``/`` the page, ``/rows?after=N`` the rows from N on."""

    log_of: RunLog

    def do_GET(self) -> None:
        """Answer, but only to pages of this machine: another site's name must not lead here."""
        asked = urlsplit(self.path)
        if (self.headers.get("Host") or "").rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
            self.answer(403, "text/plain", "this page is for this machine")
        elif asked.path == "/":
            self.answer(200, "text/html; charset=utf-8", self.log_of.page(follow=True))
        elif asked.path == "/rows":
            after = parse_qs(asked.query).get("after", ["0"])[0]
            rows = self.log_of.rows(int(after) if after.isdecimal() else 0)
            self.answer(200, "application/json", json.dumps(rows, allow_nan=False))
        else:
            self.answer(404, "text/plain", "not here")

    def answer(self, status: int, kind: str, text: str) -> None:
        """One whole answer."""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the run."""


def server(log: RunLog, port: int) -> ThreadingHTTPServer:
    """A server of the run on this machine; port 0 takes a free one."""
    handler = type("BoundLiveHandler", (LiveHandler,), {"log_of": log})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)
