"""A running server: `serve`, the handle of one in the background, and ``fastsnn serve``."""

from __future__ import annotations

import atexit
import contextlib
import json
import socket
import threading
from inspect import signature
from typing import Any

from starlette.applications import Starlette

from fastsnn_core.arguments import Parser, number
from fastsnn_core.arguments import port as port_number
from fastsnn_core.errors import ArgumentError, NetworkError, ProcessError, check_options
from fastsnn_serve.engine import Engine
from fastsnn_serve.http.routes import app as make_app


class Handle:
    """A server in a background thread: `url`, `port`, `app`, `close()`; leaving a ``with`` block closes it."""

    def __init__(self, server: Any, listener: socket.socket, app: Starlette, host: str) -> None:
        self.app, self.port = app, int(listener.getsockname()[1])
        self.url = address(host, self.port)
        self.server = server
        self.thread = threading.Thread(target=server.run, args=([listener],), name="fastsnn-serve", daemon=True)

    def start(self) -> Handle:
        """Return once connections are accepted."""
        self.thread.start()
        while not self.server.started:
            self.thread.join(0.005)
            if not self.thread.is_alive():
                raise ProcessError(f"the server at {self.url} did not start; its log says why")
        atexit.register(self.close)
        return self

    def close(self) -> None:
        """End every stream and stop listening; a second call does nothing."""
        atexit.unregister(self.close)
        self.server.should_exit = True
        self.thread.join()

    def __repr__(self) -> str:
        return f"Handle({self.url}/v1, {'running' if self.thread.is_alive() else 'stopped'})"

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    bundle: Any,
    port: int = 8000,
    host: str = "127.0.0.1",
    block: bool = True,
    *,
    name: str | None = None,
    **options: Any,
) -> Handle | None:
    """Serve a bundle (or a model) with the OpenAI protocol at ``http://host:port/v1``; port 0 picks a free one.

    With ``block=True`` it prints the address and runs until Ctrl-C; otherwise it returns a `Handle` once it accepts
    connections. `options` are those of `fastsnn_serve.app`. A port that is taken is an OSError.
    """
    known = {*signature(make_app).parameters, *signature(Engine).parameters}
    check_options("serve", options, known - {"model", "model_or_bundle", "name", "engine"})
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ArgumentError(f"a port is a whole number from 0 to 65535, got {port!r}")
    listener = listen(host, port)  # a taken port is said before the model is loaded
    try:
        application = make_app(bundle, name, **options)
    except BaseException:
        listener.close()
        raise
    server = stopping_server(application)
    if not block:
        return Handle(server, listener, application, host).start()
    print(greeting(address(host, listener.getsockname()[1]), application), flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has shut down by then, and passes the signal on
        server.run([listener])
    print("stopped", flush=True)
    return None


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is the caller's error and port 0 is known at once."""
    family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        listener.close()
        says = f"cannot listen at {host}:{port}: {error.strerror}; port 0 picks a free one"
        raise NetworkError(says) from None
    return listener


def stopping_server(application: Starlette) -> Any:
    """A uvicorn server that ends the engine's streams before it waits for its connections."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            application.state.engine.stop()
            await super().shutdown(sockets)

    return Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=10, server_header=False))


def address(host: str, port: int) -> str:
    """A URL."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def greeting(url: str, application: Starlette) -> str:
    """The address and a line to try."""
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 64})
    count = application.state.engine.max_streams
    return f"serving at {url}/v1 (up to {count} streams at once; Ctrl-C stops)\ncurl {url}/v1/completions -d '{body}'"


def main(argv: list[str]) -> int:
    """``fastsnn serve``."""
    parser = Parser("serve", "Serve a bundle over HTTP with the OpenAI protocol.")
    parser.add_argument("bundle", help="folder of the bundle")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s; 0.0.0.0: all)")
    parser.add_argument("--port", type=port_number, default=8000, help="default %(default)s; 0 picks a free one")
    parser.add_argument("--name", help="id of the model (default: the bundle's folder)")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument(
        "--max-streams", type=number(int, ge=1), default=16, help="completions at once (default %(default)s)"
    )
    parser.add_argument(
        "--cache-mb", type=number(int, ge=0), default=256, help="of the prefix cache; 0: none (default %(default)s)"
    )
    given = parser.parse_args(argv)
    serve(
        given.bundle, given.port, given.host, name=given.name, device=given.device,
        max_streams=given.max_streams, cache_bytes=given.cache_mb << 20,
    )  # fmt: skip
    return 0
