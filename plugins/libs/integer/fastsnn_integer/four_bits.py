"""W4A-spike: 4-bit weights in groups along the inputs, on integer counts; sums per group are exact.

    y_o = (Σ_g (float(Σ_{i in g} c_i q_oi) · d_og + float(Σ_{i in g} c_i) · m_og)) · V + b_o      q in 0 … 15
    y_o = (Σ_g  float(Σ_{i in g} c_i (q_oi - 8)) · d_og) · V + b_o                                without a minimum

Groups one after the other, the product first, then the minimum's, every operation in float32: a row's bits depend on
nobody else. d and m are float16 as stored and float32 at work. These are GGUF's Q4_1 and Q4_0 with a group of 32, and
rounding is theirs, too: d = (max - min) / 15 and m = min, or d = w / -8 of the largest |w|. A matrix that is on such a
grid already is found again exactly, so what a Q4_0 or Q4_1 file holds is not rounded a second time. `found_grid` does
so for grids w = d (q - z) of whole z (GPTQ, AWQ, compressed-tensors), whose m = -d z may need more than 11 bits: scales
and minima that float16 does not hold are stored in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.errors import FastSNNError
from fastsnn_core.ops.dispatch import Operator
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_events.linear import spike_sums, whole
from fastsnn_integer.forms import FourBitForm
from fastsnn_modules.operands import OperandError, Operands, imported_later, shown, with_every_tensor

LEVELS, MIDDLE, GROUPS = 15, 8, (32, 64, 128)


def grid(weight: Tensor, minimum: bool) -> tuple[Tensor, Tensor]:
    """``(d, m)`` ``[…, 1]`` of groups ``[…, group]``, rounded to float16 and back; m is -8 d without a minimum."""
    if minimum:
        low = weight.amin(-1, keepdim=True)
        d, m = halved((weight.amax(-1, keepdim=True) - low) / LEVELS), halved(low)
    else:
        largest = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
        d = halved(largest / -MIDDLE)
        m = d * -MIDDLE
    return d, m


def halved(x: Tensor) -> Tensor:
    """Rounded to float16, as float32; refuses what that does not hold."""
    out = x.to(torch.float16).float()
    if not bool(torch.isfinite(out).all()):
        raise FastSNNError("weights must be finite and below 65504 for scales in float16")
    return out


def codes_of(weight: Tensor, d: Tensor, m: Tensor) -> Tensor:
    """q in 0 … 15 nearest to (w - m) / d; 0 where d is 0 (8 where that stands for 0)."""
    safe = torch.where(d == 0, torch.ones_like(d), d)
    q = ((weight - m) / safe).round().clamp(0, LEVELS)
    return torch.where(d == 0, torch.where(m == 0, MIDDLE, 0).to(q.dtype).expand_as(q), q)


def in_groups(weight: Tensor, group: int) -> Tensor:
    """``[out, in] -> [out, groups, group]``; the last group is filled up with its own last input."""
    short = -weight.shape[1] % group
    return F.pad(weight[:, None], (0, short), mode="replicate")[:, 0].reshape(len(weight), -1, group)


def encode_four_bits(weight: Tensor, group: int, minimum: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ``[out, in]`` (uint8), d and m ``[groups, out]`` (m empty without a minimum) of a matrix."""
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise FastSNNError("weights must be finite to be quantised; got NaN or infinity")
    rows = in_groups(weight, group)
    d, m = grid(rows, minimum)
    codes = codes_of(rows, d, m).to(torch.uint8).reshape(len(weight), -1)[:, : weight.shape[1]]
    return codes, d[..., 0].T.contiguous(), m[..., 0].T.contiguous() if minimum else weight.new_empty(0)


def found_grid(weight: Tensor, group: int, minimum: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """Codes, d and m as `encode`, whose `decode_four_bits` is `weight` to the bit: w = d n, whole n at most 15 apart in
    a group (without a minimum, -8 … 7). None where there are none.

    d is a whole part of the smallest difference between two values of a group.
    """
    if len(weight) > 16 and found_grid(weight[:8], group, minimum) is None:
        return None  # what no one has put on a grid is told by its first rows
    rows = in_groups(weight.detach().float(), group)
    order = torch.cat([rows, torch.zeros_like(rows[..., :1])], -1).sort(-1).values
    steps = order.diff(dim=-1)
    step = torch.where(steps > 0, steps, torch.inf).amin(-1, keepdim=True)
    step = torch.where(torch.isfinite(step), step, torch.ones_like(step))
    d, n, open_ = torch.zeros_like(step), torch.zeros_like(rows), torch.ones_like(step, dtype=torch.bool)
    for part in range(1, LEVELS + 1):
        by = step / part
        whole_ = (rows / by).round()
        low, high = whole_.amin(-1, keepdim=True), whole_.amax(-1, keepdim=True)
        inside = (high - low <= LEVELS) if minimum else (low >= -MIDDLE) & (high < MIDDLE)
        good = open_ & inside & (whole_ * by == rows).all(-1, keepdim=True)
        d, n, open_ = torch.where(good, by, d), torch.where(good, whole_, n), open_ & ~good
    if bool(open_.any()):
        return None
    low = n.amin(-1, keepdim=True) if minimum else torch.full_like(d, -MIDDLE)
    codes = (n - low).to(torch.uint8).reshape(len(weight), -1)[:, : weight.shape[1]]
    m = (low * d)[..., 0].T.contiguous() if minimum else weight.new_empty(0, dtype=torch.float32)
    found = codes, d[..., 0].T.contiguous(), m
    return found if torch.equal(decode_four_bits(*found, group), weight.detach().float()) else None


def decode_four_bits(codes: Tensor, d: Tensor, m: Tensor, group: int) -> Tensor:
    """The weights ``[out, in]`` that codes ``[out, in]`` stand for, as GGUF has them: d q + m, or d (q - 8)."""
    wide = codes.shape[1]
    by, low = (x.T.repeat_interleave(group, 1)[:, :wide] if x.numel() else None for x in (d, m))
    assert by is not None
    return codes.float() * by + low if low is not None else (codes.float() - MIDDLE) * by


def pack_codes(codes: Tensor) -> Tensor:
    """Codes ``[out, in]`` two in a byte, input-major ``[in, ⌈out/2⌉]``: byte j has the outputs j and j + ⌈out/2⌉."""
    half = -(-len(codes) // 2)
    rows = F.pad(codes, (0, 0, 0, 2 * half - len(codes))).T.contiguous()
    return (rows[:, :half] | (rows[:, half:] << 4)).contiguous()


def unpack_codes(packed: Tensor, out: int) -> Tensor:
    """Codes ``[in, out]`` of rows of bytes."""
    return torch.cat([packed & 15, packed >> 4], -1)[..., :out]


def project_naive(counts: Tensor, packed: Tensor, d: Tensor, m: Tensor, group: int) -> Tensor:
    """The definition: the equation at the top without V and bias, ``[N, in] -> [N, out]``."""
    counts, codes = whole(counts, "counts").to(torch.int64), unpack_codes(packed, d.shape[1]).to(torch.int64)
    total = counts.new_zeros((len(counts), d.shape[1]), dtype=torch.float32)
    for g, first in enumerate(range(0, counts.shape[1], group)):
        c = counts[:, first : first + group]
        sums, weight = c @ codes[first : first + group], c.sum(-1, keepdim=True)
        part = combined(sums, weight, d[g], m[g] if m.numel() else None)
        total = part if g == 0 else total + part
    return total


def combined(sums: Tensor, weight: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    """One group's part of the numbers: exact sums and the sum of the counts, made float32 and scaled."""
    if m is None:
        return (sums - MIDDLE * weight).to(torch.float32) * d
    return sums.to(torch.float32) * d + weight.to(torch.float32) * m


_PROJECT = Operands("count_project_q4", "counts [N,D] number", "packed [D,H] uint8", "d [G,O] float32")


def check_project_q4(counts: Tensor, packed: Tensor, d: Tensor, m: Tensor, group: int) -> None:
    """The operands of `project_naive`."""
    sizes = _PROJECT(counts, packed, d)
    if isinstance(group, bool) or not isinstance(group, int) or group < 1:
        raise OperandError(f"count_project_q4: group must be a number of inputs, got {group!r}")
    if sizes["G"] != -(-sizes["D"] // group) or sizes["H"] != -(-sizes["O"] // 2):
        raise OperandError(
            f"count_project_q4: {sizes['D']} inputs in groups of {group} and {sizes['O']} outputs do not go with d "
            f"{list(d.shape)} and bytes {list(packed.shape)}"
        )
    if m.dtype != torch.float32 or (m.numel() and m.shape != d.shape):
        raise OperandError(f"count_project_q4: m must be float32, empty or {list(d.shape)}; got {shown(m)}")


PROJECT = Operator(
    "count_project_q4",
    project_naive,
    plain=True,
    check=with_every_tensor("count_project_q4", check_project_q4),
    samples=imported_later("fastsnn_integer.samples.project_q4"),
)


def project_four_bits(x: SpikeTensor | Tensor, layer: FourBits) -> Tensor:
    """The projection by a layer's weights, without its bias; numbers become counts of 8 bits per token first."""
    from fastsnn_integer.quantization import spikes_of

    spikes = spikes_of(x)
    v = spikes.scale
    if spikes.form == "count":
        counts = spikes.counts
        rows = counts.reshape(-1, counts.shape[-1])
        total = PROJECT(rows.device.type, rows, layer.weight, layer.scale, layer.minimum, layer.group)
        layer.path = PROJECT.path or "count_project_q4"
        return total.reshape(*counts.shape[:-1], total.shape[-1]) * v.to(torch.float32)
    codes, total = unpack_codes(layer.weight, layer.out_features).T.to(torch.int8), None
    for g, first in enumerate(range(0, layer.in_features, layer.group)):
        piece = slice(first, min(first + layer.group, layer.in_features))
        sums, layer.path = spike_sums(spikes, codes[:, piece], piece)
        weight, _ = spike_sums(spikes, torch.ones_like(codes[:1, piece]), piece)
        part = combined(sums, weight, layer.scale[g], layer.minimum[g] if layer.minimum.numel() else None)
        total = part if total is None else total + part
    assert total is not None
    return total * v.to(torch.float32)


class FourBits(nn.Module):
    """Packed codes and their scales, which a state dict holds in float16 where that loses nothing."""

    weight: Tensor
    scale: Tensor
    minimum: Tensor
    in_features: int
    out_features: int

    def __init__(self, weight: Tensor, group: int, minimum: bool) -> None:
        super().__init__()
        (self.out_features, self.in_features), self.group, self.path = tuple(weight.shape), group, ""
        codes, d, m = encode_four_bits(weight, group, minimum)
        self.register_buffer("weight", pack_codes(codes))
        self.register_buffer("scale", d)
        self.register_buffer("minimum", m)

    def take_(self, codes: Tensor, d: Tensor, m: Tensor) -> None:
        """Other codes and scales of the same shapes (calibrated rounding)."""
        self.weight, self.scale, self.minimum = pack_codes(codes), d, m

    def decoded(self) -> Tensor:
        """The float weights ``[out, in]`` that this stands for."""
        return decode_four_bits(unpack_codes(self.weight, self.out_features).T, self.scale, self.minimum, self.group)

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        how = "scale and minimum" if self.minimum.numel() else "scale"
        return f"{self.in_features}, {self.out_features}, 4 bits, {how} per {self.group} inputs"

    def _apply(self, fn: Any, recurse: bool = True) -> FourBits:
        from fastsnn_integer.quantization import refuse_half

        refuse_half(fn)
        super()._apply(fn, recurse)
        self.scale, self.minimum = self.scale.float(), self.minimum.float()  # float32 at work, whatever the rest is
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("scale", "minimum"):
            half = getattr(self, name).detach().to(torch.float16)
            if torch.equal(half.float(), getattr(self, name)):
                destination[f"{prefix}{name}"] = half

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.scale, self.minimum = self.scale.float(), self.minimum.float()


class Linear4(FourBits):
    """A linear layer on counts with 4-bit weights: ``SpikeTensor (or numbers) […, in] -> numbers […, out]``."""

    def __init__(self, linear: nn.Linear, group: int, minimum: bool) -> None:
        super().__init__(linear.weight, group, minimum)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float().clone())

    def lower(self) -> FourBitForm:
        """Codes, scales and bias."""
        return FourBitForm(self.weight, self.scale, self.bias, self, minimum=self.minimum, group=self.group)

    def forward(self, x: SpikeTensor | Tensor) -> Tensor:
        """The projection."""
        y = project_four_bits(x, self)
        return y if self.bias is None else y + self.bias


class Embedding4(FourBits):
    """A table of 4-bit rows: ``tokens -> rows``; and, as the head of tied weights, ``spikes or numbers -> logits``."""

    def __init__(self, table: nn.Embedding, group: int, minimum: bool) -> None:
        super().__init__(table.weight, group, minimum)

    def lower(self) -> FourBitForm:
        """As a head, or as the table itself."""
        return FourBitForm(self.weight, self.scale, None, self, minimum=self.minimum, group=self.group)

    def forward(self, x: SpikeTensor | Tensor) -> Tensor:
        """Rows of the table for token ids, ``x @ tableᵀ`` for anything else."""
        if isinstance(x, SpikeTensor) or x.is_floating_point():
            return project_four_bits(x, self)
        return table_rows(self, x.reshape(-1)).reshape(*x.shape, self.in_features)


def table_rows(table: Any, ids: Tensor) -> Tensor:
    """Float rows ``[N, in]`` of a 4-bit table (an `Embedding4` or its form) for token ids ``[N]``."""
    half = table.weight.shape[1]
    both = table.weight[:, ids % half].T
    codes = torch.where((ids >= half)[:, None], both >> 4, both & 15)
    d, m = table.scale[:, ids], table.minimum[:, ids] if table.minimum.numel() else table.minimum
    return decode_four_bits(codes, d, m, table.group)
