"""ONNX with explicit state: ``fastsnn export model.snn model.onnx --to onnx``, and back into ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import frozen

from fastsnn_core import Exporter, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_core.files import beside

__version__ = "0.1.0"
LARGEST = 2 * 10**9  # bytes of weights: a file of protobuf ends at 2 GiB


@frozen
class Onnx(Exporter):
    """(y, present.*) = f(x, past.*): one graph for a prompt and for a token, for any number of streams.

    Inputs are ``tokens [B,T]`` (or ``input [B,T,*shape]``) and one ``past.NAME`` for every tensor of the model's state;
    outputs are ``logits`` (or ``output``) and ``present.NAME``. A stream begins with zeros, whose growing dimensions
    are 0 long: the file's metadata says which (``fastsnn.state``). Loops over time (neurons, linear attention) are
    ONNX' standard Scan. What was written is run by ONNX Runtime, whole and in pieces, beside the model before the file
    is put in its place; a difference beyond `tolerance` of the largest output is an error. Counts are rounded: a number
    that lies between two counts to the last bit may fall on the other side elsewhere.
    Errors: INT8 and 4-bit weights, states that do not begin with zeros, what `torch.export` cannot write: named.
    Source: onnx.ai operator schemas, opset 20; written by torch.onnx, run by ONNX Runtime.
    """

    name = "onnx"
    writes = "file"
    tolerance = 1e-4
    opset: int = param(20, ge=18, le=23, doc="version of ONNX' operators", draw=(20,))

    def unsupported(self, model: Any) -> list[str]:
        """Reasons that can be told without writing."""
        if getattr(getattr(model, "spec", None), "quant", None) is not None:
            return ["INT8 or 4-bit weights: ONNX gets float weights; export the float bundle"]
        if not hasattr(getattr(model, "spec", None), "example"):
            return ["it has no spec that says what its input is; fastsnn convert makes a bundle of it"]
        weight = sum(p.numel() * p.element_size() for p in model.parameters())
        if weight > LARGEST:
            return [f"its weights are {weight / 1e9:.1f} GB, and an ONNX file holds 2 GB"]
        return []

    def export(self, model: Any, path: Any) -> Path:
        """Write, run beside the model, and only then put the file in its place."""
        from fastsnn_exporter_onnx import graph

        if reasons := self.unsupported(model):
            raise FastSNNError("; ".join(reasons))
        path = Path(path)
        with beside(path) as scratch:
            graph.write_onnx(model, scratch, self.opset)
            graph.compare_outputs(model, scratch, self.tolerance)
        return path

    def load(self, path: Any) -> Any:
        """The file in ONNX Runtime, to be called like the model."""
        from fastsnn_exporter_onnx.runtime import OnnxNetwork

        return OnnxNetwork(path)


@hookimpl
def fastsnn_exporters() -> list[type[Exporter]]:
    """This plugin's exporters."""
    return [Onnx]
