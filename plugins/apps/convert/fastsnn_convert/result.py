"""What `convert` returns."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
from torch import nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.report import Report
from fastsnn_core import bundle

__all__ = ["Conversion", "ConversionError"]


@attrs.define(eq=False, repr=False)
class Conversion:
    """A converted network: `model` (an ``nn.Module``, with ``.spec`` where it can be saved) and its `report`.

    `options` of `save` go to `fastsnn_core.bundle.save` (a tokenizer, say).
    """

    model: nn.Module
    report: Report
    options: dict[str, Any] = attrs.field(factory=dict)

    def __repr__(self) -> str:
        numbers = sum(p.numel() for p in self.model.parameters())
        return f"Conversion({type(self.model).__name__}, {numbers:,} parameters, {self.report!r})"

    def save(self, path: str | Path) -> Path:
        """Write a ``.snn`` bundle, the report in it (spike.report/conversion.json and .html).

        A network that no spec can say is refused, and every obstacle is named.
        """
        if getattr(self.model, "spec", None) is None:
            refuse_bundle(self.report.get("obstacles") or ["it carries no .spec"])
        changed = [
            f"module {name or 'the network itself'}, which has forward hooks or a forward of its own"
            for name, m in self.model.named_modules()
            if m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__
        ]
        if changed:
            refuse_bundle(changed)
        meta = dict(getattr(self.model, "meta", {}))
        kept = {k: v for k, v in self.report.items() if k not in ("modules", "curve")}
        meta["milestones"] = [*meta.get("milestones", []), {"what": "convert"} | kept]
        self.model.meta = meta  # type: ignore[assignment]
        with tempfile.TemporaryDirectory() as folder:
            self.report.write(Path(folder))
            return bundle.save(self.model, path, **({"report": folder} | self.options))


def refuse_bundle(obstacles: Sequence[str]) -> NoReturn:
    """Say why a network cannot be written as a bundle, and what can be."""
    raise ConversionError(
        f"this network cannot be saved as a bundle: {'; '.join(obstacles)}. What can be saved: layers of `sequential`, "
        "calls on the list of `graph`, tensors, and modules that carry a Model component as their .spec"
    )
