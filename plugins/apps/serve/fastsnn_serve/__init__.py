"""A language model over HTTP with the OpenAI protocol: `app` (ASGI), `serve` (a running server), the CLI verb."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsnn_core.lazy import lazy
from fastsnn_serve import moved as moved

if TYPE_CHECKING:
    from fastsnn_serve.engine import Engine
    from fastsnn_serve.http.routes import app
    from fastsnn_serve.http.server import Handle, serve

__version__ = "0.1.0"
__all__ = ["Engine", "Handle", "app", "command", "serve"]
_EXPORTS = {"Engine": ".engine", "Handle": ".http.server", "app": ".http.routes", "serve": ".http.server"}
__getattr__ = lazy(__name__, _EXPORTS)


def command(argv: list[str]) -> int:
    """Serve a bundle over HTTP with the OpenAI protocol."""
    from fastsnn_serve.http.server import main

    return main(argv)
