"""A running server: `serve`, the handle of one in the background, and ``fastsnn serve``."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from inspect import signature
from typing import Any

from starlette.applications import Starlette

from fastsnn_console.arguments import Parser, number
from fastsnn_console.arguments import port as port_number
from fastsnn_console.typed import typed
from fastsnn_core.errors import ArgumentError, NetworkError, ProcessError, check_options
from fastsnn_serve.engine import Engine
from fastsnn_serve.http.routes import app as make_app

GRACE = 30.0  # seconds that running streams have to end after SIGTERM


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


@typed
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
    if not 0 <= port <= 65535:
        raise ArgumentError(f"a port is a whole number from 0 to 65535, got {port!r}")
    listener = listen(host, port)  # a taken port is said before the model is loaded
    try:
        application = make_app(bundle, name, **options)
    except BaseException:
        listener.close()
        raise
    if not block:
        return Handle(stopping_server(application), listener, application, host).start()
    server = stopping_server(application, greeting(address(host, listener.getsockname()[1]), application))
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has shut down by then, and passes the signal on
        server.run([listener])
    print("stopped", flush=True)
    return None


def listen(host: str, port: int) -> socket.socket:
    """A bound socket: a port that is in use raises in the caller, and the number behind port 0 is known at once."""
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise NetworkError(f"host {host!r} is no address of this machine ({error}); try 127.0.0.1 or 0.0.0.0") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        listener.close()
        says = f"cannot listen at {host}:{port}: {error.strerror}; port 0 picks a free one"
        raise NetworkError(says) from None
    return listener


def stopping_server(application: Starlette, greeting: str = "") -> Any:
    """A uvicorn server that prints its address once it accepts connections; on exit it ends streams before connections.

    SIGTERM lets the running streams end first (`GRACE` seconds; a second signal does not wait), Ctrl-C does not.
    """
    import uvicorn
    from starlette.concurrency import run_in_threadpool

    class Server(uvicorn.Server):
        draining = False

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if greeting:
                print(greeting, flush=True)

        def handle_exit(self, sig: int, frame: Any) -> None:
            self.draining = sig == signal.SIGTERM and not self.should_exit
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield  # uvicorn itself would raise the signal again, and the process would end by it
            finally:
                for sig, handler in before.items():
                    signal.signal(sig, handler)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            engine = application.state.engine
            if self.draining:
                await run_in_threadpool(engine.drain, GRACE)
            engine.stop()
            await super().shutdown(sockets)

    return Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=10, server_header=False))


def address(host: str, port: int) -> str:
    """A URL."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def greeting(url: str, application: Starlette) -> str:
    """The address, and an example request."""
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 64})
    count = application.state.engine.max_streams
    says = f"serving at {url}/v1 (up to {count} streams at once; Ctrl-C stops)\ncurl {url}/v1/completions -d '{body}'"
    if why := application.state.engine.runner.apart:
        says += f"\nnote: streams take turns and do not share passes over the weights: {why}"
    if application.state.plain_chat:
        says += "\nnote: the model has no chat template; chats are put as 'User: … / Assistant:' lines"
    return says


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
        "--max-model-len", type=number(int, ge=0),
        help="tokens of prompt and answer together (default: what the model was made for; 0: no bound)",
    )  # fmt: skip
    parser.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="origin whose pages may ask; *: all"
    )
    parser.add_argument("--log", action="store_true", help="a line per request on stderr")
    parser.add_argument(
        "--cache-mb", type=number(int, ge=0), default=256, help="of the prefix cache; 0: none (default %(default)s)"
    )
    parser.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help="wanted of every request (also from FASTSNN_API_KEY, which no list of processes shows)",
    )  # fmt: skip
    parser.add_argument("--sessions", metavar="FOLDER", help="where /sessions/save puts its files (default: nowhere)")
    parser.add_argument(
        "--max-seconds", type=number(float, ge=0), default=0.0, help="of a request, waiting included; 0: no bound"
    )
    parser.add_argument(
        "--speculate", type=number(int, ge=0, le=64), default=0, metavar="N",
        help="tokens drafted and read at once; the text stays the same (integer models; 0: none)",
    )  # fmt: skip
    parser.add_argument("--draft", metavar="BUNDLE", help="a small model that drafts them (default: n-grams)")
    given = parser.parse_args(argv)
    keys = [*given.api_key, *filter(None, [os.environ.get("FASTSNN_API_KEY")])]
    if given.log:
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("fastsnn.serve").setLevel(logging.INFO)
    serve(
        given.bundle, given.port, given.host, name=given.name, device=given.device,
        max_streams=given.max_streams, cache_bytes=given.cache_mb << 20, max_model_len=given.max_model_len,
        cors=given.cors, log=given.log, api_keys=keys, sessions=given.sessions, max_seconds=given.max_seconds,
        speculate=given.speculate, draft=given.draft,
    )  # fmt: skip
    return 0
