"""W8A-spike: INT8 weights on integer counts, so that every projection is an exact integer sum and one scaling.

    y = (float(Σ_i c_i · w_oi) · s_o) · V + b_o      codes w in [-127, 127], s_o = ⌈max_i |W_oi| / 127⌉, V the threshold

⌈·⌉ rounds up to a bfloat16, in which scales are stored; they are float32 at work. With groups,
(Σ_g float(Σ_{i in g} c_i w_oi) · s_og) · V + b_o, groups one after the other. Integer sums do not depend on their
order, on the batch, on how counts are written as spikes, or on which kernel adds them up; all else on the path is done
in the fixed order of `fastsnn_integer.deterministic`. So a stream's logits are the same bits alone and in any batch,
under any
cut of the prompt, and in either runtime. Where no spikes stand in front of a projection, its input becomes counts of
eight bits by itself, V = max|x| / 127 per token. Biases, centres and gains of norms are rounded to bfloat16 once, when
a model is quantised, and are float32 at work; neuron constants and states of linear attention stay as they are.
"""

from __future__ import annotations

import copy
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import bundle_checks
from fastsnn_core.component import param
from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import MatrixForm, NormForm, Unsupported
from fastsnn_core.moved import renamed
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_events.linear import count_project, input_major, spike_sums
from fastsnn_integer import deterministic
from fastsnn_integer.forms import no_integer_form
from fastsnn_integer.four_bits import GROUPS, Embedding4, FourBits, Linear4
from fastsnn_integer.ternary import PackedTernary, TernaryLinear, refuse_what_is_not_ternary

LARGEST = 127
COMPOSE = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity)


@frozen
class Quant:
    """Integer arithmetic for a whole model: which weights are stored in INT8, 4 bits or ternary, how many scales."""

    bits: int = param(8, choices=(8, 4, 2), doc="of a weight, its sign included; 2: -1, 0 and 1", draw=(8,))
    group: int = param(
        0, ge=0, le=65536, unit="inputs",
        doc="inputs that share a scale; 0: one scale per output (8 bits), or 32 inputs (4 bits)", draw=(0, 8)
    )  # fmt: skip
    minimum: bool = param(True, doc="4 bits: a minimum per group beside its scale")
    table_bits: int = param(8, choices=(8, 4), doc="below 8 bits: of the embedding and the head", draw=(8,))
    head: bool = param(True, doc="the head in INT8; tied weights are one table, so embed must agree")
    embed: bool = param(True, doc="the embedding in INT8")
    kv: bool = param(False, doc="keys and values of attention caches in INT8, one scale per head vector")

    def __attrs_post_init__(self) -> None:
        if self.bits == 4 and self.group not in (0, *GROUPS):
            raise FastSNNError(
                f"4-bit weights come in groups of {', '.join(map(str, GROUPS))} inputs, got {self.group}"
            )
        if self.bits == 2 and self.group:
            raise FastSNNError(f"ternary weights have one scale per output: group must be 0, got {self.group}")

    @property
    def inputs(self) -> int:
        """Inputs of a group of 4-bit weights."""
        return self.group or GROUPS[0]

    def four(self, table: bool) -> bool:
        """Are these weights (of the embedding and head, or of the blocks) in 4 bits?"""
        return self.bits < 8 and (self.table_bits if table else self.bits) == 4


def quantize_per_token(x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """``(counts, scale)`` of ``x [..., D]`` with 8 bits per vector along `dim`; counts as x, scale ``[..., 1]``.

    scale = max|x| / 127, and 1 where all is 0; counts = round(x / scale), in -127 ... 127.
    """
    scale = x.abs().amax(dim, keepdim=True) / LARGEST
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # also where the division underflows
    return (x / scale).round(), scale


def encode_int8(weight: Tensor, group: int = 0) -> tuple[Tensor, Tensor]:
    """INT8 codes ``[out, in]`` and float32 scales ``[out, groups]`` of a weight matrix; refuses what is not finite."""
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise FastSNNError("weights must be finite to be quantised; got NaN or infinity")
    out, size = weight.shape
    group = group or max(1, size)
    rows = F.pad(weight, (0, -size % group)).reshape(out, -1, group)
    _, scale = quantize_per_token(rows)
    scale = ceil_to_bf16(scale)
    codes = (rows / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return codes.reshape(out, -1)[:, :size], scale[..., 0]


def ceil_to_bf16(scale: Tensor) -> Tensor:
    """Positive float32 numbers rounded up to the next bfloat16, so that no code leaves its range."""
    return ((scale.view(torch.int32) + 0xFFFF) & -0x10000).view(torch.float32)


def decode_levels(codes: Tensor, scale: Tensor, group: int = 0) -> Tensor:
    """codes · scale as floats, ``[…, in]``; scale ``[…, groups]``."""
    if scale.shape[-1] == 1:
        return codes.to(scale.dtype) * scale
    return codes.to(scale.dtype) * scale.repeat_interleave(group, -1)[..., : codes.shape[-1]]


def refuse_half(fn: Any) -> None:
    """Refuse a cast to half precision: INT8 scales, biases and states are float32 at work, and their bits a promise."""
    if fn(torch.empty(0)).dtype in (torch.float16, torch.bfloat16):
        raise FastSNNError(
            "integer arithmetic (W8A) works in float32 and cannot be cast to half precision; its weights are INT8 "
            "already. Cast the float model instead, before quantise or export --to w8a"
        )


class Int8Weights(nn.Module):
    """INT8 codes and their scales, which a state dict holds in bfloat16 where that loses nothing."""

    weight: Tensor
    scale: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Weights:
        refuse_half(fn)
        super()._apply(fn, recurse)
        self.scale = self.scale.float()  # float32 at work, whatever the rest is
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        half = self.scale.detach().to(torch.bfloat16)
        if torch.equal(half.float(), self.scale):
            destination[f"{prefix}scale"] = half

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.scale = self.scale.float()


class QuantLinear(Int8Weights):
    """A linear layer on counts with INT8 weights: ``SpikeTensor (or numbers) […, in] -> numbers […, out]``."""

    reads_spikes = True

    def __init__(self, linear: nn.Linear, group: int = 0) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group = linear.in_features, linear.out_features, group
        codes, scale = encode_int8(linear.weight, group)
        self.register_buffer("weight", input_major(codes))  # an event reads one contiguous row
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float().clone())
        self.path = ""

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, int8, groups of {self.group or self.in_features}"

    def lower(self) -> MatrixForm:
        """Codes, one scale per output, bias."""
        return MatrixForm(self.weight, one_scale(self), self.bias, self)

    def forward(self, x: SpikeTensor | Tensor) -> Tensor:
        """The projection; exact up to one rounding per scale."""
        y, self.path = quantized_linear(x, self.weight, self.scale, self.group)
        return y if self.bias is None else y + self.bias


def one_scale(layer: QuantLinear | QuantEmbedding) -> Tensor:
    """The scales ``[out]`` of a layer with one per output; `Unsupported` for scales per group of inputs."""
    if layer.scale.shape[-1] != 1:
        raise Unsupported(f"it has a scale per group of {layer.group} inputs; only one per output has a fused form")
    return layer.scale[:, 0]


def spikes_of(x: SpikeTensor | Tensor) -> SpikeTensor:
    """Spikes for an integer projection, of one threshold per token; numbers become counts of 8 bits per token."""
    spikes = x if isinstance(x, SpikeTensor) else SpikeTensor(*quantize_per_token(x.detach()))
    threshold = spikes.scale
    if threshold.ndim and threshold.shape[-1] != 1:
        raise FastSNNError(
            f"integer projections need one threshold per token, this input has {tuple(threshold.shape)} of them: "
            "a threshold per channel cannot leave the sum"
        )
    return spikes


def quantized_linear(x: SpikeTensor | Tensor, weight: Tensor, scale: Tensor, group: int) -> tuple[Tensor, str]:
    """``(y, path)``: the equation at the top without its bias, and the kernel that took the sums."""
    spikes = spikes_of(x)
    threshold = spikes.scale
    if scale.shape[-1] == 1:
        if spikes.form == "count":
            return count_project(spikes, weight, scale[:, 0])
        sums, path = spike_sums(spikes, weight)
        return sums.to(scale.dtype) * scale[:, 0] * threshold.to(scale.dtype), path
    total: Any = 0.0
    for g, first in enumerate(range(0, weight.shape[1], group)):
        piece = slice(first, first + group)
        sums, path = spike_sums(spikes, weight[:, piece], piece)
        part = sums.to(scale.dtype) * scale[:, g]
        total = part if g == 0 else total + part
    return total * threshold.to(scale.dtype), path


class QuantEmbedding(Int8Weights):
    """A table of INT8 rows: ``tokens -> rows``; and, as the head of tied weights, ``spikes or numbers -> logits``."""

    def __init__(self, table: nn.Embedding, group: int = 0) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group = table.embedding_dim, table.num_embeddings, group
        codes, scale = encode_int8(table.weight, group)
        self.register_buffer("weight", codes.contiguous())
        self.register_buffer("scale", scale)
        self.path = ""

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.out_features}, {self.in_features}, int8"

    def lower(self) -> MatrixForm:
        """As a head: codes and one scale per output."""
        return MatrixForm(self.weight, one_scale(self), None, self)

    def forward(self, x: SpikeTensor | Tensor) -> Tensor:
        """Rows of the table for token ids, ``x @ tableᵀ`` for anything else."""
        if isinstance(x, Tensor) and not x.is_floating_point():
            return decode_levels(self.weight[x], self.scale[x], self.group)
        y, self.path = quantized_linear(x, self.weight, self.scale, self.group)
        return y


class RowLinear(nn.Linear):
    """A float layer whose rows are multiplied one at a time, so that none depends on how many there are (slow)."""

    def forward(self, x: Any) -> Tensor:
        """The projection, row by row."""
        y = row_linear(x, self.weight)
        return y if self.bias is None else y + self.bias


def row_linear(x: Any, weight: Tensor) -> Tensor:
    """``x @ weightᵀ``, row by row: equal shapes and alignment, so equal arithmetic, whatever stands beside a row."""
    value = x.value() if isinstance(x, SpikeTensor) else x
    kind = torch.promote_types(value.dtype, weight.dtype)  # after model.double() or .half() they may differ
    value, weight = value.to(kind), weight.to(kind)
    out = [weight @ row.clone() for row in value.reshape(-1, weight.shape[1])]
    y = torch.stack(out) if out else value.new_empty(0, len(weight))
    return y.reshape(*value.shape[:-1], len(weight))


class RowNorm(nn.RMSNorm):
    """RMSNorm in the fixed order of `fastsnn_integer.deterministic`."""

    def lower(self) -> NormForm:
        """Its weight and eps."""
        return NormForm(self.weight if self.weight is not None else torch.ones(self.normalized_shape), self.epsilon)

    @property
    def epsilon(self) -> float:
        """eps; the smallest step above 1 in float32 where none is given, as in torch."""
        return self.eps if self.eps is not None else torch.finfo(torch.float32).eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised rows."""
        return deterministic.rms_norm(
            x, self.weight, self.eps if self.eps is not None else torch.finfo(torch.float32).eps
        )


class RowLayerNorm(nn.LayerNorm):
    """(x - mean) / √(mean (x - mean)² + eps) · weight + bias in the fixed order of `fastsnn_integer.deterministic`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised rows."""
        rows = x.detach().float()
        rows = rows - deterministic.row_sum(rows) / rows.shape[-1]
        y = deterministic.rms_norm(rows, self.weight, self.eps)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


def apply(model: nn.Module, quant: Quant) -> nn.Module:
    """Turn a float model, in place, into integer arithmetic: its layers, norms and every module that can be exact."""
    for name, module in list(model.named_modules()):
        for key, child in list(module.named_children()):
            if swapped := swap(f"{name}.{key}".lstrip("."), child, quant):
                setattr(module, key, swapped)
    part: Any
    for part in model.modules():
        if hasattr(part, "batch_invariant"):
            part.batch_invariant = True
        if hasattr(part, "kv_bits"):
            part.kv_bits = 8 if quant.kv else 0
    return model


@torch.no_grad()
def round_to_bf16_(model: nn.Module) -> None:
    """Round biases, centres and gains of norms to the nearest bfloat16, in place; they stay float32 at work."""
    for module in model.modules():
        names = ("bias", "centre", "weight") if isinstance(module, nn.RMSNorm | nn.LayerNorm) else ("bias", "centre")
        for p in (module._parameters.get(name) for name in names):
            if p is not None and p.dtype == torch.float32:
                p.copy_(p.to(torch.bfloat16))


def swap(name: str, module: nn.Module, quant: Quant) -> nn.Module | None:
    """What stands in the place of one float layer, or None."""
    if isinstance(module, TernaryLinear):
        module = module.plain()
    if type(module) is nn.Linear:
        if name == "head" and not quant.head:
            row = RowLinear(module.in_features, module.out_features, module.bias is not None)
            row.load_state_dict(module.state_dict())
            return row
        try:
            if quant.four(table=name == "head"):
                return Linear4(module, quant.inputs, quant.minimum)
            if quant.bits == 2 and name != "head":
                return PackedTernary(module)
            return QuantLinear(module, quant.group if quant.bits == 8 else 0)
        except ValueError as error:
            raise FastSNNError(f"{name}: {error}") from None
    if type(module) is nn.Embedding and quant.embed:
        if quant.four(table=True):
            return Embedding4(module, quant.inputs, quant.minimum)
        return QuantEmbedding(module, quant.group if quant.bits == 8 else 0)
    if type(module) is nn.RMSNorm and len(module.normalized_shape) == 1:
        norm = RowNorm(module.normalized_shape, module.eps, module.weight is not None)
        norm.load_state_dict(module.state_dict())
        return norm
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        affine, bias = module.elementwise_affine, module.bias is not None
        layer = RowLayerNorm(module.normalized_shape, module.eps, affine, bias)
        layer.load_state_dict(module.state_dict())
        return layer
    return None


def not_batch_invariant(model: nn.Module) -> list[str]:
    """Modules without a batch-invariant implementation: with any of them a row's bits may depend on its batch."""
    known = (
        QuantLinear,
        QuantEmbedding,
        FourBits,
        PackedTernary,
        RowLinear,
        RowNorm,
        RowLayerNorm,
        nn.Embedding,
        *COMPOSE,
    )
    return [
        f"{name or 'the model'} ({type(m).__name__})"
        for name, m in model.named_modules()
        if not isinstance(m, known) and not getattr(m, "batch_invariant", False)
    ]


def quantise(model: nn.Module, quant: Quant | None = None) -> nn.Module:
    """A copy of a float model in integer arithmetic: by its method ``quantised(quant)``, or its spec's field `quant`.

    Wrappers are taken off; forward hooks that change what is computed, which the copy would not have, are refused.
    """
    model = bundle_checks.unwrapped(model)
    spec: Any = getattr(model, "spec", None)
    if callable(own := getattr(model, "quantised", None)):
        return own(quant or Quant())
    if spec is None or not hasattr(spec, "quant"):
        raise FastSNNError(no_integer_form(model))
    if spec.quant is not None:
        raise FastSNNError("this model is in integer arithmetic already")
    bundle_checks.refuse_forward_hooks(model)
    sound = bundle_checks.as_built(model)
    new_spec = attrs.evolve(spec, quant=quant or Quant())
    if new_spec.quant.bits == 2:
        refuse_what_is_not_ternary({name: m for name, m in model.named_modules() if name != "head"})
    new: Any = apply(copy.deepcopy(model), new_spec.quant).eval()
    round_to_bf16_(new)
    new.spec = new_spec
    if sound:
        bundle_checks.remember(new)
    meta = dict(getattr(model, "meta", {}))
    done = {"what": "quantise", **attrs.asdict(new_spec.quant)}
    new.meta = {k: v for k, v in meta.items() if k != "created"} | {"milestones": [*meta.get("milestones", []), done]}
    return new


OLD = {
    "Stored": "Int8Weights",
    "encode": "encode_int8",
    "inexact": "not_batch_invariant",
    "levels": "quantize_per_token",
    "project": "quantized_linear",
    "short": "ceil_to_bf16",
    "shorten": "round_to_bf16_",
}
__getattr__ = renamed(__name__, OLD)
