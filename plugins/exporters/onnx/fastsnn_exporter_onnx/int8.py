"""W8A bundles in ONNX: weights stay INT8 in the file (a Cast in front of a matrix product), and sums stay exact.

    y = (Σ_i c_i · w_oi) · s_o · V      c: counts as float32, w: INT8 codes as float32, exact below 2^24

A product of whole numbers in float32 is exact in any order as long as its sums are below 2^24, so that ONNX Runtime's
projections give the bundle's numbers. Norms, activations and attention are ONNX Runtime's, equal up to rounding.
DequantizeLinear in the Cast's place is lossy: ONNX Runtime 1.31 fuses it into a product that rounds the *other* factor,
the counts, to 8 bits. MatMulInteger takes counts of 8 bits only, and ours may be larger.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_integer.quantization import (
    QuantEmbedding,
    QuantLinear,
    RowLayerNorm,
    RowLinear,
    RowNorm,
    quantize_per_token,
)  # fmt: skip

LARGEST = 127


def int8_obstacles(quant: Any) -> list[str]:
    """What of a decoder's `quant` has no form here."""
    found = []
    if quant.bits < 8:
        kind = "ternary" if quant.bits == 2 else "4-bit"
        found.append(f"{kind} weights: ONNX gets INT8 or float weights; export the float bundle")
    elif quant.group:
        found.append(f"a scale per group of {quant.group} inputs: ONNX gets one per output; quantise with group = 0")
    if quant.kv:
        found.append("keys and values in INT8: ONNX gets them in float32; quantise with kv = false")
    return found


class CodedLinear(nn.Module):
    """A `QuantLinear` in operations that ONNX has."""

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        self.register_buffer("codes", layer.weight.detach().float().contiguous())
        self.register_buffer("scale", layer.scale[:, 0].detach().float().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float().clone())

    def forward(self, x: Any) -> Tensor:
        """The projection."""
        y = onnx_project(x, self.get_buffer("codes"), self.get_buffer("scale"))
        return y if self.bias is None else y + self.bias


class CodedEmbedding(QuantEmbedding):
    """A `QuantEmbedding` in operations that ONNX has; the model asks for the class."""

    def __init__(self, table: QuantEmbedding) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.group = table.in_features, table.out_features, 0
        self.register_buffer("weight", table.weight.detach().float().contiguous())
        self.register_buffer("scale", table.scale.detach().float().clone())

    def forward(self, x: Any) -> Tensor:
        """Rows of the table for token ids, logits of anything else."""
        if isinstance(x, Tensor) and not x.is_floating_point():
            return F.embedding(x, self.weight) * F.embedding(x, self.scale)
        return onnx_project(x, self.weight, self.scale[:, 0])


def onnx_project(x: SpikeTensor | Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """``(Σ c w) s V`` of spikes, or of numbers that become counts of eight bits per token."""
    spikes = x if isinstance(x, SpikeTensor) else SpikeTensor(*quantize_per_token(x))
    return F.linear(spikes.counts.to(torch.float32), codes) * scale * spikes.scale.to(torch.float32)


def written_as_floats(model: Any) -> Any:
    """A copy of a W8A model whose projections are float products of whole numbers, and all else is torch's own."""
    new: Any = copy.deepcopy(model).eval()
    for part in list(new.modules()):
        for key, child in list(part.named_children()):
            made: nn.Module | None = None
            if isinstance(child, QuantLinear):
                made = CodedLinear(child)
            elif isinstance(child, QuantEmbedding):
                made = CodedEmbedding(child)
            elif isinstance(child, RowLinear):
                made = nn.Linear(child.in_features, child.out_features, child.bias is not None)
            elif isinstance(child, RowNorm):
                made = nn.RMSNorm(child.normalized_shape, child.eps, child.weight is not None)
            elif isinstance(child, RowLayerNorm):
                affine, bias = child.elementwise_affine, child.bias is not None
                made = nn.LayerNorm(child.normalized_shape, child.eps, affine, bias)
            if made is not None:
                if not isinstance(child, QuantLinear | QuantEmbedding):
                    made.load_state_dict(child.state_dict())
                setattr(part, key, made)
    for part in new.modules():
        part.__dict__.pop("batch_invariant", None)  # as its class has it
    return new


def store_as_int8(path: Path) -> int:
    """Float32 matrices of whole numbers in -127 … 127 as INT8 and a Cast; how many there were."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(path)
    graph, nodes, kept = proto.graph, [], []
    for held in graph.initializer:
        values = numpy_helper.to_array(held)
        whole = held.data_type == onnx.TensorProto.FLOAT and values.ndim >= 2 and values.size >= 64
        if not whole or np.abs(values).max() > LARGEST or not np.array_equal(values, np.rint(values)):
            kept.append(held)
            continue
        name = f"{held.name}.int8"
        kept.append(numpy_helper.from_array(values.astype(np.int8), name))
        cast = onnx.helper.make_node("Cast", [name], [held.name], name=f"{name}.float", to=onnx.TensorProto.FLOAT)
        nodes.append(cast)
    if nodes:
        rest = list(graph.node)
        del graph.initializer[:], graph.node[:]
        graph.initializer.extend(kept)
        graph.node.extend([*nodes, *rest])
        onnx.checker.check_model(proto)
        onnx.save(proto, path)
    return len(nodes)
