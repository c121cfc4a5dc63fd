"""The engine: streams, prefill, decoding, the prefix cache and the memory budget."""

from __future__ import annotations

from fastsnn_core.lazy import lazy

_EXPORTS = {"CHUNK": ".engine", "Engine": ".engine", "Refused": ".engine"}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)
