"""A `nir_graph` model as a C header: ``fastsnn export model.snn model.h --to c_header``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from attrs import frozen

from acme_c_header.emit import NODES, header
from fastsnn_core import Exporter, hookimpl
from fastsnn_core.files import write_text

__version__ = "0.1.0"


@frozen
class CHeader(Exporter):
    """y_t, state_t = f(x_t, state_{t-1}) in C99: arrays of float32, one function per step, no allocation.

    Writes a header with ``NAME_state``, ``NAME_reset`` and ``NAME_step`` (NAME is the file's). Sums run in the order of
    the inputs, so membranes agree with PyTorch's up to rounding. Errors: nodes that have no form here, by name.
    """

    name = "c_header"
    writes = "file"
    tolerance = 1e-5

    def unsupported(self, model: Any) -> list[str]:
        """Nodes without a form."""
        spec = getattr(model, "spec", None)
        if getattr(spec, "name", "") != "nir_graph":
            return [f"{getattr(spec, 'name', type(model).__name__)} is no nir_graph, which alone has a form in C here"]
        return [f"node {n.name!r} is of kind {n.kind}" for n in spec.nodes if n.kind not in NODES]  # type: ignore[union-attr]

    def export(self, model: Any, path: Any) -> Path:
        """Write the header, beside and renamed."""
        path = Path(path)
        write_text(path, header(model, re.sub(r"\W", "_", path.stem)))
        return path


@hookimpl
def fastsnn_exporters() -> list[type[Exporter]]:
    """This plugin's exporters."""
    return [CHeader]
