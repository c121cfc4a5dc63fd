"""A language model over HTTP with the OpenAI protocol: `app` (ASGI), `serve` (a running server), the CLI verb."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsnn_serve.engine import Engine
    from fastsnn_serve.routes import app
    from fastsnn_serve.running import Handle, serve

__version__ = "0.1.0"
__all__ = ["Engine", "Handle", "app", "command", "serve"]
_EXPORTS = {"Engine": "engine", "Handle": "running", "app": "routes", "serve": "running"}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fastsnn_serve' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastsnn_serve.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def command(argv: list[str]) -> int:
    """Serve a bundle over HTTP with the OpenAI protocol."""
    from fastsnn_serve.running import main

    return main(argv)
