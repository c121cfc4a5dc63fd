"""W1.58A-spike: a bundle whose weights are -1, 0 and 1 times a scale, in 2 bits, so that its sums are additions."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from attrs import frozen
from torch import nn

from fastsnn_core import Exporter, hookimpl, param
from fastsnn_integer import ternary
from fastsnn_integer.exporting import IntegerExporter
from fastsnn_integer.quantization import Quant, quantise

__version__ = "0.1.0"

LOG = logging.getLogger("fastsnn")


@frozen
class W158a(IntegerExporter):
    """y_o = (Σ_{i: t_oi = 1} c_i - Σ_{i: t_oi = -1} c_i) · s_o · V, t in {-1, 0, 1}: 2 bits a weight, additions only.

    Four weights are a byte, and the bytes of an input lie together, so that an event reads one row. Sums are exact:
    counts, events and any batch give the same bits (`fastsnn_integer.ternary`). For models that were trained so
    (``weights = "ternary"`` of a decoder) and checkpoints that are ternary (BitNet b1.58, Ma et al. 2024, arXiv
    2402.17764): scale and codes are those that they work with, nothing is rounded a second time. Other weights are
    refused, or, with `round`, rounded by BitNet's absmean, t = clip(round(W / s), -1, 1), s = mean |W| of a matrix; the
    loss is logged and kept in the bundle. Embedding and head have 8 bits, or 4. Errors: a model without an integer
    form, weights that are not ternary (without `round`) or not finite.
    """

    name = "w1.58a"
    round: bool = param(False, doc="round weights that are not ternary", draw=(True,))
    table_bits: int = param(8, choices=(8, 4), doc="of the embedding and the head")

    def quant(self) -> Quant:
        """The decoder's table that this writes."""
        return Quant(bits=2, table_bits=self.table_bits)

    def expected(self, model: Any) -> Any:
        """The model with ternary weights."""
        if not self.round:
            return quantise(model, self.quant())
        rounded, lost = copy.deepcopy(model), dict[str, float]()
        for name, layer in rounded.named_modules():
            if type(layer) is nn.Linear and name != "head":
                lost[name] = ternary.rounding_loss(layer.weight)
                if lost[name]:
                    codes, scale = ternary.absmean(layer.weight.detach().float())
                    with torch.no_grad():
                        layer.weight.copy_(codes * scale)
        new: Any = quantise(rounded, self.quant())
        done = new.meta["milestones"][-1]
        done |= {"layers": len(lost), "exact": sum(not loss for loss in lost.values())}
        if far := {name: loss for name, loss in lost.items() if loss}:
            worst = max(far, key=lambda name: far[name])
            done |= {"loss": sum(far.values()) / len(far)}
            LOG.warning(
                "w1.58a: %d of %d layers were rounded, which changed their weights by %.0f %% of their norm (%s by "
                '%.0f %%); train with weights = "ternary" to lose nothing',
                len(far), len(lost), 100 * done["loss"], worst, 100 * far[worst],
            )  # fmt: skip
        return new


@hookimpl
def fastsnn_exporters() -> list[type[Exporter]]:
    """This plugin's exporters."""
    return [W158a]
