"""Between the engine's thread and asyncio: the streams of a request, their deltas, and disconnecting clients."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fastsnn_serve.engine import Engine, Refused
from fastsnn_serve.engine.embedding import NoHiddenState
from fastsnn_serve.engine.sessions import SessionError
from fastsnn_serve.engine.streams import CompletionDelta, Prompt, Stream
from fastsnn_serve.http.protocol import CompletionRequest
from fastsnn_serve.http.replies import Reply, best, joined, usage
from fastsnn_serve.http.strict_json import Invalid, dumps


class Json(Response):
    """A JSON response; lone surrogates stay escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return dumps(content)


def error_body(error: Invalid) -> Json:
    """An error in OpenAI's format; temporary ones have a Retry-After header."""
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return Json(error.body(), error.status, headers)


def translated(error: BaseException) -> Invalid:
    """An engine's error for the client."""
    if isinstance(error, OSError):  # of the server's disk
        status = 507 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else 500
        return Invalid(str(error.strerror or error), code="cannot_write", status=status, type="server_error")
    if isinstance(error, SessionError | NoHiddenState):
        return Invalid(str(error), code="invalid_value")
    if not isinstance(error, Refused):
        says = f"the model failed: {type(error).__name__}: {error}"
        return Invalid(says, code="model_failed", status=500, type="server_error")
    message = str(error)
    if error.reason == "busy":
        return Invalid(message, code="rate_limit_exceeded", status=429, type="rate_limit_error")
    if error.reason in ("closed", "late"):
        return Invalid(message, code="unavailable", status=503, type="server_error")
    long = error.reason == "too_long"
    return Invalid(message, "max_tokens" if long else "n", "context_length_exceeded" if long else "too_many_choices")


class RequestTask:
    """The streams of one request, submitted; deltas come out as ``(choice, delta)``."""

    def __init__(self, engine: Engine, wanted: CompletionRequest) -> None:
        self.engine, self.loop = engine, asyncio.get_running_loop()
        self.queue: asyncio.Queue[tuple[int, CompletionDelta]] = asyncio.Queue()
        self.streams: list[Stream] = []
        for ids, echo in zip(wanted.prompts, wanted.echoes, strict=True):
            prompt = Prompt(ids, echo=echo, score=wanted.score)
            for params in wanted.params_per_choice():
                self.streams.append(Stream(prompt, params, engine.tokenizer, self.listener(len(self.streams))))
        try:
            engine.submit(self.streams)
        except Refused as error:
            raise translated(error) from None

    def listener(self, index: int) -> Any:
        """What the engine calls, from its thread, with each delta of choice `index`."""
        return lambda delta: self.loop.call_soon_threadsafe(self.queue.put_nowait, (index, delta))

    async def deltas(self) -> AsyncIterator[tuple[int, CompletionDelta]]:
        """Yields until every choice has ended; an error of one ends all of them."""
        left = len(self.streams)
        while left:
            index, delta = await self.queue.get()
            if delta.error is not None:
                raise translated(delta.error)
            left -= delta.finish is not None
            yield index, delta

    def cancel(self) -> None:
        """Cancel all streams that have not ended."""
        self.engine.cancel(self.streams)


async def unless_gone(receive: Receive, work: Any) -> Any:
    """The result of the coroutine `work`; None if the client disconnects first."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def asked(request: Request, engine: Engine, work: Any) -> Any:
    """The result of a job on the engine's thread; None if the client disconnects first."""
    try:
        future = engine.ask(work)
        return await unless_gone(request.receive, asyncio.wrap_future(future))
    except (Refused, OSError, SessionError, NoHiddenState) as error:
        raise translated(error) from None


async def answer(request: Request, engine: Engine, wanted: CompletionRequest, reply: Reply) -> Response:
    """The response to `wanted`, whole or as a stream of events, in the words of `reply`."""
    work = RequestTask(engine, wanted)
    if wanted.stream:
        return ServerSentEvents(work, reply)

    async def collect() -> Json:
        said: list[list[CompletionDelta]] = [[] for _ in work.streams]
        async for index, delta in work.deltas():
            said[index].append(delta)
        choices = best(wanted, [joined(deltas) for deltas in said], work.streams)
        return Json(reply.whole(choices, usage(work.streams)))

    try:
        return await unless_gone(request.receive, collect()) or Response(status_code=499)  # nobody reads the 499
    finally:
        work.cancel()


class ServerSentEvents(Response):
    """Server-sent events: chunks, usage if requested, ``[DONE]``; if the client disconnects, its streams are
    cancelled.
    """

    media_type = "text/event-stream"

    def __init__(self, work: RequestTask, reply: Reply) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.work, self.reply = work, reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        try:
            await unless_gone(receive, self.send_all(send))
        except OSError:  # the connection broke while something was sent
            pass
        finally:
            self.work.cancel()

    async def send_all(self, send: Send) -> None:
        """Head, events, end."""

        async def event(data: dict[str, Any]) -> None:
            await send({"type": "http.response.body", "body": self.reply.event(data), "more_body": True})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            for chunk in self.reply.opening():
                await event(chunk)
            async for index, delta in self.work.deltas():
                for chunk in self.reply.chunks(index, delta):
                    await event(chunk)
            for chunk in self.reply.closing(usage(self.work.streams)):
                await event(chunk)
            last = self.reply.last
        except Invalid as error:
            await event(self.reply.failed(error.body()))
            last = b""
        await send({"type": "http.response.body", "body": last, "more_body": False})
