"""Middleware: request ids, API keys, a log line per request, CORS."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastsnn_serve.http.strict_json import Invalid, dumps

LOG = logging.getLogger("fastsnn.serve")
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
OPEN = {"/", "/healthz", "/health", "/readyz"}  # answered without a key: probes, and the page, which asks for one


class RequestId:
    """``X-Request-Id``: the client's, or a new one; on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        scope["fastsnn.request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = scope["fastsnn.request_id"]
            await send(message)

        await self.app(scope, receive, named)


class Keys:
    """``Authorization: Bearer KEY``: one of `keys`, or 401; compared in constant time."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http" or scope["path"] in OPEN or self.fits(scope):
            await self.app(scope, receive, send)
            return
        error = Invalid("this server wants a key: Authorization: Bearer KEY", code="invalid_api_key", status=401)
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": dumps(error.body())})

    def fits(self, scope: Scope) -> bool:
        """Is the request's key one of ours?"""
        kind, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        given = key.strip()
        return kind.lower() == b"bearer" and sum(hmac.compare_digest(given, own) for own in self.keys) > 0


class RequestLog:
    """``127.0.0.1 POST /v1/completions 200 0.31 s ID``, once the last byte of the answer is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
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
            seconds, number = time.perf_counter() - began, scope["fastsnn.request_id"]
            LOG.info("%s %s %s %d %.2f s %s", who, scope["method"], scope["path"], status, seconds, number)


def middleware(cors: Sequence[str], log: bool, keys: Sequence[str]) -> list[Middleware]:
    """The middleware of `fastsnn_serve.app`, outermost first."""
    found = [Middleware(RequestId)]
    found += [Middleware(RequestLog)] if log else []
    origins = [cors] if isinstance(cors, str) else list(cors)
    if origins:
        found.append(
            Middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"],
                expose_headers=["X-Request-Id"],
            )
        )  # fmt: skip
    wanted = [keys] if isinstance(keys, str) else list(keys)
    return found + ([Middleware(Keys, keys=wanted)] if wanted else [])
