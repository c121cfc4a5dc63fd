"""The same application as a Ray Serve deployment: several replicas behind one address.

    pip install fastsnn-serve[ray]
    serve run fastsnn_serve.http.ray_app:build bundle=model.snn replicas=2

Each replica loads the bundle (a path that every node sees) and has its own engine and prefix cache. A front sends each
request to the replica that has read most of its prompt (`prefix_affinity`), unless that one has `max_streams` requests
more than the least busy. Where a replica dies, a request of which nothing was answered yet goes to another one; a
stream that had begun ends with an error event. ``replicas=1-4`` lets Ray choose how many, by the requests in progress.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fastsnn_core.errors import FastSNNError, MissingError
from fastsnn_serve.http.prefix_affinity import prefix_blocks
from fastsnn_serve.http.request_task import error_body
from fastsnn_serve.http.strict_json import Invalid, dumps

KNOWN = {"bundle", "name", "device", "replicas", "max_streams", "target", "scale_seconds", "cpus"}
TRIES = 3  # replicas that a request is sent to, where they die before they answer


def build(args: dict[str, str]) -> Any:
    """A Ray Serve application from ``key=value``: bundle, and optionally name, device, max_streams, and

    replicas (a number, or least-most), target (requests per replica that more replicas are started for; max_streams),
    scale_seconds (for which there are more, or fewer, requests; 30), cpus (of a replica; 1).
    """
    if "bundle" not in args or set(args) - KNOWN:
        others = ", ".join(sorted(KNOWN - {"bundle"}))
        raise FastSNNError(f"expected bundle=PATH and optionally {others}; got {sorted(args)}")
    streams = above_zero(args, "max_streams", 16)
    least, _, most = args.get("replicas", "1").partition("-")
    router = {
        "request_router_class": "fastsnn_serve.http.ray_router:PrefixRouter",
        "request_router_kwargs": {"slack": streams},
    }
    how: dict[str, Any] = {
        "max_ongoing_requests": 4 * streams, "request_router_config": router, "health_check_period_s": 2,
        "ray_actor_options": {"num_cpus": above_zero(args, "cpus", 1.0)},
    }  # fmt: skip
    if most:
        seconds = above_zero(args, "scale_seconds", 30.0)
        fewest, largest = (above_zero({"replicas": n}, "replicas", 1) for n in (least, most))
        if fewest > largest:
            raise FastSNNError(f"replicas: expected least-most, got {args['replicas']!r}")
        how["autoscaling_config"] = {
            "min_replicas": fewest,
            "max_replicas": largest,
            "target_ongoing_requests": above_zero(args, "target", streams), "upscale_delay_s": seconds,
            "downscale_delay_s": 10 * seconds,
        }  # fmt: skip
    else:
        how["num_replicas"] = above_zero({"replicas": least}, "replicas", 1)
    bundle = str(Path(args["bundle"]).resolve())  # replicas work elsewhere
    try:
        from ray import serve
    except ImportError:
        raise MissingError("fastsnn_serve.http.ray_app needs Ray: pip install fastsnn-serve[ray]") from None
    replica: Any = serve.deployment(Replica, name="fastsnn")
    front: Any = serve.deployment(Front, name="front")
    replica = replica.options(**how)
    front = front.options(max_ongoing_requests=10**4, ray_actor_options={"num_cpus": 0})
    return front.bind(replica.bind(bundle, args.get("name"), args.get("device", "cpu"), streams))


def above_zero(args: dict[str, str], name: str, default: Any) -> Any:
    """``args[name]`` as a number of at least one (a fraction may be less), of the default's type."""
    try:
        value = type(default)(args.get(name, default))
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise FastSNNError(f"{name}: expected a number above 0, got {args[name]!r}")
    return value


class Replica:
    """One server: answers requests that the front has read."""

    def __init__(self, bundle: str, name: str | None, device: str, streams: int) -> None:
        from ray import serve

        from fastsnn_serve import app

        self.id = serve.get_replica_context().replica_id.unique_id
        self.app = app(bundle, name, device=device, max_streams=streams)
        self.app.state.engine.start()

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica whose engine has ended."""
        if not self.app.state.engine.alive:
            raise RuntimeError(self.app.state.engine.failure)

    async def __call__(self, head: dict[str, Any], body: bytes, blocks: list[int]) -> AsyncIterator[Any]:
        """``(status, headers)``, then the answer's bytes as they come; a cancelled call ends its streams."""
        async for part in asgi_answer(self.app, head, body):
            yield (part[0], [*part[1], (b"x-replica", self.id.encode())]) if isinstance(part, tuple) else part

    def __del__(self) -> None:
        if hasattr(self, "app"):
            self.app.state.engine.close()


async def asgi_answer(app: Any, head: dict[str, Any], body: bytes) -> AsyncIterator[Any]:
    """What an ASGI application says to one request: ``(status, headers)``, then bytes."""
    parts: asyncio.Queue[Any] = asyncio.Queue()
    given, gone = [{"type": "http.request", "body": body, "more_body": False}], asyncio.Event()

    async def receive() -> Any:
        if given:
            return given.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app({"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"} | head, receive, parts.put)
        finally:
            parts.put_nowait(None)

    task = asyncio.ensure_future(run())
    try:
        while (message := await parts.get()) is not None:
            if message["type"] == "http.response.start":
                yield message["status"], message["headers"]
            elif message.get("body"):
                yield message["body"]
        await task
    finally:
        gone.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Front:
    """Reads requests, and sends each to the replica that knows its beginning."""

    def __init__(self, replicas: Any) -> None:
        self.replicas = replicas.options(stream=True)

    async def __call__(self, request: Request) -> Response:
        """One request."""
        from fastsnn_serve.http.routes import BODY

        body = bytearray()
        async for piece in request.stream():
            body += piece[: BODY + 1 - len(body)]  # one byte too many is refused by the replica
        scope = request.scope
        head = {key: scope[key] for key in ("method", "path", "query_string", "headers", "scheme")}
        head |= {
            "raw_path": scope["path"].encode(),
            "root_path": "",
            "client": scope.get("client"),
            "server": scope.get("server"),
        }
        blocks = prefix_blocks(bytes(body))
        for _ in range(TRIES):
            parts = self.replicas.remote(head, bytes(body), blocks=blocks)
            try:
                status, headers = await anext(parts)
            except actor_errors():  # it died, and has said nothing yet
                continue
            answer = StreamingResponse(passed_on(parts, dict(headers)), status)
            answer.raw_headers = list(headers)
            return answer
        return error_body(
            Invalid("the replicas that had this request ended; try again", status=503, type="server_error")
        )


async def passed_on(parts: Any, headers: dict[bytes, bytes]) -> AsyncIterator[bytes]:
    """The rest of an answer; where its replica dies, a stream of events ends with an error event."""
    try:
        async for part in parts:
            yield part
    except actor_errors():
        if not headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            raise
        error = Invalid("the replica that wrote this answer ended", status=503, type="server_error")
        yield b"data: " + dumps(error.body()) + b"\n\n"
    finally:
        parts.cancel()


def actor_errors() -> tuple[type[Exception], ...]:
    """What Ray raises where a replica has died."""
    from ray.exceptions import RayActorError, WorkerCrashedError

    return RayActorError, WorkerCrashedError
