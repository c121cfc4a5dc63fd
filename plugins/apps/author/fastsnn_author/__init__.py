"""For authors of plugins and readers of specs: ``fastsnn show``, ``fastsnn new-plugin``."""

from __future__ import annotations

from fastsnn_core.lazy import lazy

__version__ = "0.1.0"

_EXPORTS = {"new_plugin": ".scaffold"}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return __all__
