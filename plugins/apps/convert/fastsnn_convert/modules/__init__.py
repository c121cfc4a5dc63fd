"""Any `nn.Module`: traced, its activations replaced by rules, thresholds found on calibration data, measured."""

from __future__ import annotations

from fastsnn_core.lazy import lazy

_EXPORTS = {"convert_module": ".convert", "from_bundle": ".convert", "from_weights": ".convert"}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)
