"""The contract of conversion rules: context and replacement, time folding, layers that pass spikes on."""

from __future__ import annotations

from fastsnn_core.lazy import lazy

__version__ = "0.1.0"

_EXPORTS = {
    "Context": ".context",
    "ConversionError": ".context",
    "FoldedSite": ".time_folding",
    "TimeFoldedSite": ".time_folding",
    "Replacement": ".context",
    "channels_of": ".context",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return __all__
