"""The event runtime: counts are written as spike trains over S steps by a coder and replayed, with the same numbers."""

from __future__ import annotations

from fastsnn_core.lazy import lazy

__version__ = "0.1.0"

_EXPORTS = {
    "Coding": ".runtime",
    "Switchable": ".runtime",
    "replay": ".runtime",
    "use": ".runtime",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return __all__
