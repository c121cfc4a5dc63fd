"""Language models: a dense decoder is read, rebuilt with spike sites, calibrated, measured and healed."""

from __future__ import annotations

from fastsnn_core.lazy import lazy

_EXPORTS = {"convert_language": ".convert"}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)
