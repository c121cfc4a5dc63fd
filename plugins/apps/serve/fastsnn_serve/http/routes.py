"""The ASGI application: OpenAI's endpoints, tokenizing, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from torch import nn

from fastsnn_console.arguments import device as check_device
from fastsnn_console.typed import typed
from fastsnn_core import load
from fastsnn_serve import __version__
from fastsnn_serve.api.endpoints import Endpoints
from fastsnn_serve.api.openapi import description
from fastsnn_serve.api.responses import ResponseReply, response
from fastsnn_serve.engine import Engine
from fastsnn_serve.engine.grammar import Grammars
from fastsnn_serve.engine.sessions import Sessions
from fastsnn_serve.http import protocol
from fastsnn_serve.http.around import middleware
from fastsnn_serve.http.chat_template import RequestChatTemplate, template_source
from fastsnn_serve.http.protocol import CompletionRequest, RequestContext
from fastsnn_serve.http.replies import Reply
from fastsnn_serve.http.request_task import Json, answer, error_body
from fastsnn_serve.http.strict_json import Invalid, parse
from fastsnn_serve.page import front_page

BODY = 32 << 20  # bytes of a request
BODY_SECONDS = 60.0  # that a client may take to send it
FINGERPRINT = f"fastsnn-{__version__}"
Endpoint = Callable[[Request], Awaitable[Response]]


@typed
def app(
    model_or_bundle: Any,
    name: str | None = None,
    *,
    device: str = "cpu",
    max_body: int = BODY,
    body_seconds: float = BODY_SECONDS,
    cors: Sequence[str] = (),
    log: bool = False,
    api_keys: Sequence[str] = (),
    sessions: str | Path | None = None,
    draft: Any = None,
    **engine: Any,
) -> Starlette:
    """An ASGI application that serves one language model (a module, or the path of a bundle, loaded onto `device`).

    `cors` lists the origins whose pages may ask ("*": all), `log` logs a line per request (logger ``fastsnn.serve``).
    With `api_keys` every request needs one of them (``Authorization: Bearer KEY``), but for health and the page.
    `max_body` and `body_seconds` bound what a client sends. `sessions` is the folder of session files, `draft` a model
    or bundle whose tokens are tried first (with `speculate`). `name` is the model's id, by default the bundle's folder
    without ``.snn``. Further options go to `fastsnn_serve.Engine`: max_streams, max_waiting, chunk, cache_bytes,
    state_bytes, max_model_len, max_seconds, speculate. The engine is ``app.state.engine``; the model is put into
    evaluation mode and belongs to it until it is closed.

    Errors (FastSNNError): no bundle there, a model that is no language model or has no tokenizer, options out of range,
    a state that does not fit into `state_bytes`.
    """
    check_device(device)
    if isinstance(model_or_bundle, nn.Module):
        model_or_bundle.to(device)
        model, found = model_or_bundle, str(getattr(getattr(model_or_bundle, "spec", None), "name", "") or "model")
    else:
        model, found = load(model_or_bundle, device), Path(model_or_bundle).resolve().name.removesuffix(".snn")
    if draft is not None and not isinstance(draft, nn.Module):
        draft = load(draft, device)
    server = Server(Engine(model, draft=draft, **engine), name or found, max_body, body_seconds, sessions)
    return server.starlette(middleware(cors, log, api_keys))


class Server(Endpoints):
    """The endpoints, over one engine."""

    def __init__(
        self, engine: Engine, name: str, max_body: int, body_seconds: float = BODY_SECONDS,
        sessions: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.max_body, self.created = engine, max_body, int(time.time())
        self.body_seconds = body_seconds
        source = template_source(engine.model, engine.tokenizer)
        template, grammars = (
            RequestChatTemplate(engine.tokenizer, source),
            Grammars(engine.tokenizer, engine.sizes.vocab),
        )
        self.context = RequestContext(
            name, engine.tokenizer, engine.sizes.vocab, template, grammars, engine.max_model_len
        )
        folder = None if sessions is None else Path(sessions)
        self.sessions = None if folder is None else Sessions(folder, engine.model, source, engine.runner.chunk)

    def starlette(self, around: list[Middleware]) -> Starlette:
        """The application."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self.engine.start()
            yield
            await run_in_threadpool(self.engine.close)

        handlers: dict[Any, Any] = {HTTPException: starlette_refusal, Exception: broken}
        made = Starlette(routes=self.routes(), lifespan=lifespan, exception_handlers=handlers, middleware=around)
        made.state.engine, made.state.plain_chat = self.engine, self.context.template.plain
        return made

    def table(self) -> list[tuple[str, str, Endpoint, str]]:
        """Method, path, endpoint, and what it is for; the model's id may hold slashes."""
        return [
            ("GET", "/", self.front, "this page; JSON unless a browser asks"),
            ("GET", "/v1/models", self.models, "the model, as a list"),
            ("GET", "/v1/models/{id:path}", self.model, "the model"),
            ("POST", "/v1/completions", self.completions, "continue a prompt"),
            ("POST", "/v1/chat/completions", self.chat, "answer a conversation"),
            ("POST", "/v1/responses", self.responses, "answer a text or a conversation, as a response object"),
            ("POST", "/v1/embeddings", self.embeddings, "mean over tokens of the last hidden state"),
            ("POST", "/tokenize", self.tokenize, "prompt or messages to token ids"),
            ("POST", "/apply-template", self.apply_template, "messages to the prompt's text"),
            ("POST", "/detokenize", self.detokenize, "token ids to text"),
            ("GET", "/tokenizer_info", self.tokenizer_info, "special tokens and chat template"),
            ("GET", "/healthz", self.health, "200 while the model answers, 503 once it has stopped"),
            ("GET", "/health", self.health, "the same"),
            ("GET", "/readyz", self.health, "the same"),
            ("GET", "/metrics", self.metrics, "Prometheus metrics"),
            ("GET", "/slots", self.slots, "what runs now"),
            ("GET", "/sessions", self.list_sessions, "names of saved sessions"),
            ("POST", "/sessions/save", self.save_session, "save the state after a prompt to a file"),
            ("POST", "/sessions/restore", self.restore_session, "go on from a saved state"),
            ("GET", "/openapi.json", self.openapi, "this surface as OpenAPI 3.1"),
        ]

    def routes(self) -> list[Route]:
        """All of the table."""
        return [
            Route(path, self.counted(path, endpoint), methods=[method]) for method, path, endpoint, _ in self.table()
        ]

    def counted(self, path: str, endpoint: Endpoint) -> Endpoint:
        """`endpoint` with its errors as responses, and every answer counted."""

        async def wrapped(request: Request) -> Response:
            try:
                response = await endpoint(request)
            except Invalid as error:
                response = error_body(error)
            except ClientDisconnect:  # while it was sending; nobody reads this
                response = Response(status_code=499)
            self.engine.metrics.add("fastsnn_requests_total", labels=f'endpoint="{path}",code="{response.status_code}"')
            return response

        return wrapped

    async def body(self, request: Request) -> Any:
        """The parsed body; one that is too large is read to its end (so that the client receives the error) and
        refused.
        """
        held, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.body_seconds or None):
                async for piece in request.stream():
                    size += len(piece)
                    if size <= self.max_body:
                        held += piece
                    elif size > 16 * self.max_body:
                        break
        except TimeoutError:
            says = f"the body did not arrive within {self.body_seconds:g} s"
            raise Invalid(says, code="request_timeout", status=408) from None
        if size > self.max_body:
            raise Invalid(f"the body is larger than {self.max_body} bytes", code="request_too_large", status=413)
        return await run_in_threadpool(parse, bytes(held))

    async def front(self, request: Request) -> Response:
        """GET /: a description of the server as JSON, or the chat page for browsers."""
        paths = [[method, path, what] for method, path, _, what in self.table()]
        about = {
            "server": "fastsnn-serve", "version": __version__, "model": self.context.name,
            "max_model_len": self.engine.max_model_len, "paths": paths,
        }  # fmt: skip
        return front_page(request, about)

    # -- OpenAI's endpoints --------------------------------------------------------------------------------------

    async def complete(self, request: Request, read: Callable[[Any, RequestContext], CompletionRequest]) -> Response:
        """Read the body (tokenizing off the event loop), then answer."""
        wanted = await run_in_threadpool(read, await self.body(request), self.context)
        reply = Reply(wanted, self.context.name, self.context.tokenizer, FINGERPRINT)
        return await answer(request, self.engine, wanted, reply)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self.complete(request, protocol.completion)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self.complete(request, protocol.chat)

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""
        wanted, said = await run_in_threadpool(response, await self.body(request), self.context)
        reply = ResponseReply(wanted, self.context.name, self.context.tokenizer, FINGERPRINT, said)
        return await answer(request, self.engine, wanted, reply)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return Json(description(self.table(), self.context.vocab, self.context.name, __version__))

    def card(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        return {"id": self.context.name, "object": "model", "created": self.created, "owned_by": "fastsnn"}

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return Json({"object": "list", "data": [self.card()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        if request.path_params["id"] != self.context.name:
            raise protocol.unknown_model(request.path_params["id"], self.context)
        return Json(self.card())

    # -- health --------------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """GET /healthz, /health, /readyz: 200 while the engine works, 503 once it has stopped or is stopping."""
        if not self.engine.alive:
            message = self.engine.failure or "the server is shutting down"
            raise Invalid(message, code="unavailable", status=503, type="server_error")
        return Json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return PlainTextResponse(self.engine.metrics.render(), media_type="text/plain; version=0.0.4")


async def starlette_refusal(request: Request, error: HTTPException) -> Response:
    """Starlette's own refusals (unknown path, wrong method) in OpenAI's form."""
    message = {404: f"no such path: {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    response = error_body(Invalid(message.get(error.status_code, error.detail), code=code, status=error.status_code))
    response.headers.update(error.headers or {})
    return response


async def broken(request: Request, error: Exception) -> Response:
    """An internal error: status 500."""
    return error_body(
        Invalid(f"{type(error).__name__}: {error}", code="internal_error", status=500, type="server_error")
    )
