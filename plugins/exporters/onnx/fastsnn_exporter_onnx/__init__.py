"""ONNX with explicit state: ``fastsnn export model.snn model.onnx --to onnx``, and back into ONNX Runtime."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from attrs import frozen

from fastsnn_core import Exporter, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_core.files import beside

__version__ = "0.1.0"
log = logging.getLogger("fastsnn")
LARGEST = 2 * 10**9  # bytes of weights: a file of protobuf ends at 2 GiB


def has_int8_layers(model: Any) -> bool:
    """Has a network over time layers with INT8 weights?"""
    from fastsnn_integer.quant_conv import QuantConv
    from fastsnn_integer.quantization import QuantLinear

    return any(isinstance(m, QuantConv | QuantLinear) for m in getattr(model, "modules", list)())


@frozen
class Onnx(Exporter):
    """(y, present.*) = f(x, past.*): one graph for a prompt and for a token, for any number of streams.

    Inputs are ``tokens [B,T]`` (or ``input [B,T,*shape]``) and one ``past.NAME`` for every tensor of the model's state;
    outputs are ``logits`` (or ``output``) and ``present.NAME``. A stream begins with zeros, whose growing dimensions
    are 0 long: the file's metadata says which (``fastsnn.state``). Loops over time (neurons) are ONNX' standard Scan,
    and so is linear attention where the installed ONNX Runtime has no operator of its own for it, which a warning says.
    What was written is run by ONNX Runtime, whole and in pieces, beside the model before the file
    is put in its place; a difference beyond `tolerance` of the largest output is an error. Counts are rounded: a number
    that lies between two counts to the last bit may fall on the other side elsewhere. W8A bundles keep their INT8
    weights (`fastsnn_exporter_onnx.int8`): projections are exact, and outputs may differ by `int8_tolerance`.
    Errors: 4-bit weights, INT8 in groups, states that do not begin with zeros, what `torch.export` cannot write: named.
    Source: onnx.ai operator schemas, opset 20; written by torch.onnx, run by ONNX Runtime.
    """

    name = "onnx"
    writes = "file"
    tolerance = 1e-4
    int8_tolerance: float = param(
        1e-2, gt=0.0, unit="of the largest output", doc="W8A bundles: the difference beyond which nothing is written"
    )
    opset: int = param(20, ge=18, le=23, doc="version of ONNX' operators", draw=(20,))

    linear_attention: str = param(
        "auto",
        choices=("auto", "scan", "com.microsoft"),
        doc="linear attention: ONNX' Scan, ONNX Runtime's own operator (faster prompts), or that where it is there",
        draw=("auto",),
    )

    def unsupported(self, model: Any) -> list[str]:
        """Reasons that can be told without writing."""
        if (quant := getattr(getattr(model, "spec", None), "quant", None)) is not None:
            from fastsnn_exporter_onnx.int8 import int8_obstacles

            if reasons := int8_obstacles(quant):
                return reasons
        elif has_int8_layers(model):
            return ["INT8 weights of a network over time; export the bundle that this one was made of"]
        if not hasattr(getattr(model, "spec", None), "example"):
            return ["it has no spec that says what its input is; fastsnn convert makes a bundle of it"]
        weight = sum(p.numel() * p.element_size() for p in model.parameters())
        if weight > LARGEST:
            return [f"its weights are {weight / 1e9:.1f} GB, and an ONNX file holds 2 GB"]
        return []

    def export(self, model: Any, path: Any) -> Path:
        """Write, run beside the model, and only then put the file in its place."""
        from fastsnn_exporter_onnx import graph, int8
        from fastsnn_exporter_onnx.linear_attention import runtime_has_operator, written_as_operator

        if reasons := self.unsupported(model):
            raise FastSNNError("; ".join(reasons))
        path, whole = Path(path), getattr(model.spec, "quant", None) is not None
        operator = self.linear_attention != "scan" and runtime_has_operator()
        if self.linear_attention == "com.microsoft" and not operator:
            raise FastSNNError(
                "onnx: the installed ONNX Runtime has no com.microsoft.LinearAttention; use linear_attention = scan"
            )
        with beside(path) as scratch, written_as_operator(operator) as met:
            graph.write_onnx(int8.written_as_floats(model) if whole else model, scratch, self.opset)
            if whole and not int8.store_as_int8(scratch):
                raise FastSNNError("onnx: none of the INT8 weights was found in the graph")
            graph.compare_outputs(model, scratch, self.int8_tolerance if whole else self.tolerance)
        if met and not operator and self.linear_attention == "auto":
            log.warning("onnx: this ONNX Runtime has no operator for linear attention; it is written as a loop (Scan)")
        return path

    def load(self, path: Any) -> Any:
        """The file in ONNX Runtime, to be called like the model."""
        from fastsnn_exporter_onnx.runtime import OnnxNetwork

        return OnnxNetwork(path)


@hookimpl
def fastsnn_exporters() -> list[type[Exporter]]:
    """This plugin's exporters."""
    return [Onnx]
