"""W1.58A-spike: weights -1, 0 and +1 times one scale per output, in 2 bits, on integer counts; nothing is multiplied.

    y_o = (float(Σ_{i: t_oi = +1} c_i - Σ_{i: t_oi = -1} c_i) · s_o) · V + b_o          t in {-1, 0, +1}

The bits of an INT8 layer with codes t and scales s: the sum is exact, so neither its order nor the batch nor the form
of the spikes matters. A matrix is ternary where all numbers of a row that are not 0 have one magnitude, its scale.
`absmean` makes one so (BitNet b1.58, Ma et al. 2024, arXiv 2402.17764):

    t = clip(round(W / s), -1, 1)          s = max(mean |W|, 1e-5), one for the whole matrix

A model loses much by that unless it was trained so (`TernaryLinear`). Four codes t + 1 are a byte.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError
from fastsnn_core.ops.dispatch import Operator
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_events.linear import count_linear_naive, spike_sums
from fastsnn_integer.forms import TernaryForm
from fastsnn_modules.operands import OperandError, Operands, imported_later, with_every_tensor

PER_BYTE, LEAST_SCALE = 4, 1e-5


def absmean(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes t ``[out, in]`` (float) and their one scale, a number, by the equation above."""
    scale = weight.abs().mean().clamp_min(LEAST_SCALE)
    return (weight / scale).round().clamp(-1, 1), scale


def found_ternary(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Codes ``[out, in]`` (int8) and scales ``[out]`` whose product is `weight` to the bit; None where there are none.

    A row of zeros has the scale 1.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(1) if weight.shape[1] else weight.new_zeros(len(weight))
    if not bool(torch.isfinite(scale).all()):
        raise FastSNNError("weights must be finite to be quantised; got NaN or infinity")
    if not bool(((weight == 0) | (weight.abs() == scale[:, None])).all()):
        return None
    return weight.sign().to(torch.int8), torch.where(scale == 0, torch.ones_like(scale), scale)


def rounding_loss(weight: Tensor) -> float:
    """What `absmean` changes: ‖W - s t‖ / ‖W‖; 0 for a matrix that is ternary."""
    if found_ternary(weight) is not None:
        return 0.0
    codes, scale = absmean(weight.detach().float())
    return float((weight.detach().float() - codes * scale).norm() / weight.detach().float().norm())


def pack_ternary(codes: Tensor) -> Tensor:
    """Codes -1, 0, 1 ``[out, in]``, four in a byte, input-major ``[in, ⌈out/4⌉]``.

    Byte j has the outputs j, j + q, j + 2 q and j + 3 q, q = ⌈out/4⌉, from the low bits up.
    """
    quarter = -(-len(codes) // PER_BYTE)
    rows = F.pad(codes.to(torch.int16) + 1, (0, 0, 0, PER_BYTE * quarter - len(codes)))
    parts = rows.view(PER_BYTE, quarter, -1) << torch.tensor([0, 2, 4, 6], dtype=torch.int16).view(-1, 1, 1)
    return parts.sum(0).to(torch.uint8).T.contiguous()


def unpack_ternary(packed: Tensor, out: int) -> Tensor:
    """Codes ``[in, out]`` (int8) of rows of bytes."""
    return torch.cat([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], -1)[..., :out].to(torch.int8) - 1


def project_ternary_naive(counts: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """The definition: float(Σ_i c_i t_oi) · s_o in 64 bits and float32, ``[N, in] -> [N, out]``."""
    return count_linear_naive(counts, unpack_ternary(packed, len(scale)).T).to(torch.float32) * scale


_PROJECT = Operands("count_project_ternary", "counts [N,D] number", "packed [D,Q] uint8", "scale [O] float32")


def check_project_ternary(counts: Tensor, packed: Tensor, scale: Tensor) -> None:
    """The operands of `project_ternary_naive`."""
    sizes = _PROJECT(counts, packed, scale)
    if sizes["Q"] != -(-sizes["O"] // PER_BYTE):
        raise OperandError(
            f"count_project_ternary: {sizes['O']} outputs are {-(-sizes['O'] // PER_BYTE)} bytes a row, got packed "
            f"{list(packed.shape)}"
        )


PROJECT = Operator(
    "count_project_ternary",
    project_ternary_naive,
    plain=True,
    check=with_every_tensor("count_project_ternary", check_project_ternary),
    samples=imported_later("fastsnn_integer.samples.project_ternary"),
)


class PackedTernary(nn.Module):
    """A linear layer on counts with ternary weights: ``SpikeTensor (or numbers) […, in] -> numbers […, out]``.

    Weights that are not ternary are rounded by `absmean`; one scale for all outputs is stored as one number.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.path = linear.in_features, linear.out_features, ""
        weight = linear.weight.detach().float()
        if (found := found_ternary(weight)) is None:
            codes, scale = absmean(weight)
            found = codes.to(torch.int8), scale.expand(len(weight)).clone()
        self.register_buffer("weight", pack_ternary(found[0]))
        self.register_buffer("scale", found[1])
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float().clone())

    def decoded(self) -> Tensor:
        """The float weights ``[out, in]`` that this stands for."""
        return unpack_ternary(self.weight, self.out_features).T.float() * self.scale[:, None]

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, ternary"

    def lower(self) -> TernaryForm:
        """Codes, scales and bias."""
        return TernaryForm(self.weight, self.scale, self.bias, self)

    def forward(self, x: SpikeTensor | Tensor) -> Tensor:
        """The projection."""
        y = project_ternary(x, self)
        return y if self.bias is None else y + self.bias

    def _apply(self, fn: Any, recurse: bool = True) -> PackedTernary:
        from fastsnn_integer.quantization import refuse_half

        refuse_half(fn)
        super()._apply(fn, recurse)
        self.scale = self.scale.float()  # float32 at work, whatever the rest is
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        scale = self.scale.detach()
        if len(scale) > 1 and bool((scale == scale[0]).all()):
            destination[f"{prefix}scale"] = scale[:1].clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        name = f"{prefix}scale"
        if name in state_dict and state_dict[name].shape == (1,):
            state_dict = dict(state_dict) | {name: state_dict[name].expand(self.out_features)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.scale = self.scale.float()


def project_ternary(x: SpikeTensor | Tensor, layer: PackedTernary) -> Tensor:
    """The projection by a layer's weights, without its bias; numbers become counts of 8 bits per token first."""
    from fastsnn_integer.quantization import spikes_of

    spikes = spikes_of(x)
    v = spikes.scale
    if spikes.form == "count":
        counts = spikes.counts
        rows = counts.reshape(-1, counts.shape[-1])
        total = PROJECT(rows.device.type, rows, layer.weight, layer.scale)
        layer.path = PROJECT.path or "count_project_ternary"
        return total.reshape(*counts.shape[:-1], total.shape[-1]) * v.to(torch.float32)
    sums, layer.path = spike_sums(spikes, unpack_ternary(layer.weight, layer.out_features).T)
    return sums.to(torch.float32) * layer.scale * v.to(torch.float32)


class TernaryLinear(nn.Linear):
    """A float layer that works with W rounded by `absmean`, and whose gradient goes to W as if it had not been.

    y = (s t) x + b, ∂y/∂W := ∂(W x)/∂W (straight-through); W stays in full precision.
    """

    def rounded(self) -> Tensor:
        """s t ``[out, in]``, with the gradient of W."""
        codes, scale = absmean(self.weight.detach())
        return codes * scale + (self.weight - self.weight.detach())  # plus 0

    def forward(self, x: Any) -> Tensor:
        """The projection by rounded weights."""
        return F.linear(x, self.rounded(), self.bias)

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """The layer that this is without training: its weights rounded."""
        new = torch.nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, self.bias is not None)
        new.to(self.weight.device, self.weight.dtype)
        new.weight.copy_(self.rounded())
        if self.bias is not None:
            new.bias.copy_(self.bias)
        return new


def make_ternary(model: nn.Module) -> None:
    """Every linear layer of `model` becomes a `TernaryLinear`, parameters and all, in place."""
    for child in model.modules():
        if type(child) is nn.Linear:
            child.__class__ = TernaryLinear  # which holds nothing more


def refuse_what_is_not_ternary(layers: dict[str, nn.Module]) -> None:
    """An error that says how far the linear layers among these are from ternary, and what to do."""
    lost = {name: rounding_loss(layer.weight) for name, layer in layers.items() if type(layer) is nn.Linear}
    far = {name: loss for name, loss in lost.items() if loss}
    if far:
        worst = max(far, key=lambda name: far[name])
        raise FastSNNError(
            f"{len(far)} of {len(lost)} layers have weights that are not -1, 0 and 1 times one scale: rounding would "
            f"change {worst} by {far[worst]:.0%} of its norm, the mean layer by {sum(far.values()) / len(far):.0%}. "
            'Train with weights = "ternary" in [model] of the spec; convert ternary checkpoints with balance=False; or '
            "round all the same: --set round=true"
        )
