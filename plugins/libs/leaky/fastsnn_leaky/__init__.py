"""Leaky integration with integer counts over time: the scan, its backward, and the leaky neurons' module."""

from __future__ import annotations

from fastsnn_core.lazy import lazy

__version__ = "0.1.0"

_EXPORTS = {
    "DelayedLeaky": ".delayed",
    "Leaky": ".neurons",
    "lif_scan": ".scan",
    "thresholds": ".scan",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return __all__
