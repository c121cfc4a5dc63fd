"""Integer inference: INT8 weights, exact sums, float operations in a fixed order; bits never depend on the batch."""

from __future__ import annotations

from fastsnn_core.lazy import lazy

__version__ = "0.1.0"

_EXPORTS = {
    "Quant": ".quantization",
    "QuantEmbedding": ".quantization",
    "QuantLinear": ".quantization",
    "RowLinear": ".quantization",
    "quantize_per_token": ".quantization",
    "quantise": ".quantization",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return __all__
