"""What exporters of integer bundles have in common: which models they take, and how a bundle is written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fastsnn_core import Exporter, bundle
from fastsnn_integer.forms import no_integer_form
from fastsnn_integer.quantization import Quant, not_batch_invariant, quantise

LOG = logging.getLogger("fastsnn")


class IntegerExporter(Exporter):
    """Writes a model with quantised weights as a bundle; an exporter says by `quant` which table the decoder gets."""

    writes = "bundle"

    def quant(self) -> Quant:
        """The decoder's table that this writes."""
        raise NotImplementedError("abstract")

    def unsupported(self, model: Any) -> list[str]:
        """Reasons why `model` has no integer form."""
        spec = getattr(model, "spec", None)
        if callable(own := getattr(model, "not_quantisable", None)):
            return list(own(self.quant()))
        if spec is None or not hasattr(spec, "quant"):
            return [no_integer_form(model)]
        if spec.quant is None:
            return []
        return [f"its weights {'are INT8' if spec.quant.bits == 8 else f'have {spec.quant.bits} bits'} already"]

    def export(self, model: Any, path: Any) -> Path:
        """Quantise a copy of `model` and write its bundle; a warning names parts whose bits depend on the batch."""
        new = self.expected(model)
        if hasattr(new.spec, "quant") and (loose := not_batch_invariant(new)):
            parts = ", ".join(loose)
            LOG.warning(
                "%s: logits may depend on the batch, since these parts have no exact form: %s", self.name, parts
            )
        return bundle.save(new, path)

    def expected(self, model: Any) -> Any:
        """The model in integer arithmetic."""
        return quantise(model, self.quant())
