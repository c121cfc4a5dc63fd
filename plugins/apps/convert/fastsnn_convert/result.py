"""What `convert` returns."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.report import Report
from fastsnn_core import bundle

__all__ = ["Conversion", "ConversionError"]


@attrs.define(eq=False)
class Conversion:
    """A converted network: `model` (an ``nn.Module``, with ``.spec`` where it can be saved) and its `report`.

    `options` of `save` go to `fastsnn_core.bundle.save` (a tokenizer, say).
    """

    model: nn.Module
    report: Report
    options: dict[str, Any] = attrs.field(factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write a ``.snn`` bundle, the report in it (spike.report/conversion.json and .html).

        A network that no spec can say is refused, and every obstacle is named.
        """
        if getattr(self.model, "spec", None) is None:
            what = "; ".join(self.report.get("obstacles") or ["it carries no .spec"])
            raise ConversionError(
                f"this network cannot be saved as a bundle: {what}. What can be saved: layers of `sequential`, calls "
                "on the list of `graph`, tensors, and modules that carry a Model component as their .spec"
            )
        meta = dict(getattr(self.model, "meta", {}))
        kept = {k: v for k, v in self.report.items() if k not in ("modules", "curve")}
        meta["milestones"] = [*meta.get("milestones", []), {"what": "convert"} | kept]
        self.model.meta = meta  # type: ignore[assignment]
        with tempfile.TemporaryDirectory() as folder:
            self.report.write(Path(folder))
            return bundle.save(self.model, path, **({"report": folder} | self.options))
