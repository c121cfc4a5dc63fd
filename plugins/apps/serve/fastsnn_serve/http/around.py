"""What stands around the endpoints where it is asked for: a log line per request, and other origins' pages."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("fastsnn.serve")


class RequestLog:
    """``127.0.0.1 POST /v1/completions 200 0.31 s``, once the last byte of the answer is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # where the client leaves before an answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            who = (scope.get("client") or ("-",))[0]
            seconds = time.perf_counter() - began
            LOG.info("%s %s %s %d %.2f s", who, scope["method"], scope["path"], status, seconds)


def middleware(cors: Sequence[str], log: bool) -> list[Middleware]:
    """What `fastsnn_serve.app` puts around its endpoints."""
    found = [Middleware(RequestLog)] if log else []
    origins = [cors] if isinstance(cors, str) else list(cors)
    if origins:
        found.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    return found
