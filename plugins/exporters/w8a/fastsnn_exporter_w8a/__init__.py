"""W8A-spike: a bundle whose weights are INT8 and whose projections are exact integer sums."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from fastsnn_core import Exporter, hookimpl, param
from fastsnn_integer.exporting import IntegerExporter
from fastsnn_integer.quantization import Quant

__version__ = "0.1.0"


@frozen
class W8a(IntegerExporter):
    """w = clamp(round(W / s), -127, 127) in INT8, s = max|W| / 127 per output (or per group of inputs); y = s V (w c).

    s is rounded up to a bfloat16 first, and stored as one. Writes a ``.snn`` bundle about a quarter as large as with
    float32, which loads, runs, streams and serves like any other (`fastsnn_integer.quantization` has the arithmetic).
    All projections are quantised, down and gate projections included; biases, centres and gains of norms are rounded to
    bfloat16 and, like the scales, float32 again at work; states of linear attention are float32. Symmetric, round to
    nearest, as the W8ASpike scheme of SpikingBrain (arXiv 2509.05276), but clamped, and really stored in 8 bits.
    Of a network over time (`sequential`, `graph`): linear layers and convolutions that read spikes; batch norms are
    folded, all else stays float. Errors: a model without an integer form, weights that are not finite.
    """

    name = "w8a"
    group: int = param(
        0, ge=0, le=65536, unit="inputs", doc="inputs that share a weight scale; 0: one scale per output", draw=(0, 8)
    )
    head: bool = param(True, doc="the head in INT8; tied weights are one table, so embed must agree")
    embed: bool = param(True, doc="the embedding in INT8")
    kv: bool = param(False, doc="keys and values of attention caches in INT8, one scale per head vector")

    def quant(self) -> Quant:
        """The decoder's table that this writes."""
        return Quant(group=self.group, head=self.head, embed=self.embed, kv=self.kv)

    def unsupported(self, model: Any) -> list[str]:
        """Reasons why `model` has no integer form."""
        spec = getattr(model, "spec", None)
        if getattr(spec, "tied", False) and self.head != self.embed:
            return ["its head and embedding are one table (tied): give head and embed the same value"]
        return super().unsupported(model)


@hookimpl
def fastsnn_exporters() -> list[type[Exporter]]:
    """This plugin's exporters."""
    return [W8a]
