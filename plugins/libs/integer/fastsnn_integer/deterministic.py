"""Floating point in a fixed order: equal rows give equal bits, whoever else is in the batch and however it is cut.

torch sums a row in another order, or takes another polynomial for the last numbers of a buffer, when the batch or the
chunk has another size; near a rounding threshold such a last bit changes a count by one. Here every result comes from
single + - · / √, which IEEE 754 rounds correctly everywhere, in an order that only the row itself decides:

    over channels   folded: x_i + x_{i+n/2}, then halves again, after zeros up to a power of two     (`fold`)
    over tokens     one after the other, oldest first; tokens that may not be seen are left out
    exp, σ, …       one polynomial, the same for every number                                         (`unary`)

Everything is computed in float32 and given back in the type it came in. Compiled twins must give the same bits: no
fused multiply-add, no other order. A module that has an attribute ``batch_invariant`` uses these forms while it is
True; that is what `fastsnn_integer.quantization` sets. No gradients: this is the arithmetic of inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn_core.ops.dispatch import Operator
from fastsnn_linear_scan import initial_state
from fastsnn_modules.operands import OperandError, Operands, check_choice, check_finite_numbers, imported_later

LOG2E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440054690581e-4  # ln 2 = high + low; high has 9 bits
ROOM = (-87.0, 88.0)  # exp stays a normal number
TAYLOR = tuple(1 / math.factorial(i) for i in range(7, -1, -1))  # |r| <= ln2 / 2: relative error 5e-9
ATANH = tuple(1 / i for i in range(15, -1, -2))  # log1p(e) = 2 atanh(e / (2 + e)), e <= 1
ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)  # Abramowitz & Stegun 7.1.26: 1.5e-7
ERF_P, ROOT_HALF, GELU = 0.3275911, math.sqrt(0.5), 2 * math.sqrt(2 / math.pi)


def fold(x: Tensor, dim: int = -1) -> Tensor:
    """Sum over `dim` by halves; 0 for an empty one."""
    dim = dim % x.ndim
    size = x.shape[dim]
    if not size:
        return x.sum(dim)
    width = 1 << (size - 1).bit_length()
    if width != size:
        x = F.pad(x, (*[0, 0] * (x.ndim - 1 - dim), 0, width - size))
    while width > 1:
        width //= 2
        x = x.narrow(dim, 0, width) + x.narrow(dim, width, width)
    return x.squeeze(dim)


def exp(x: Tensor) -> Tensor:
    """e^x of float32 numbers, clamped to `ROOM` first; within 2 units in the last place."""
    x = x.clamp(*ROOM)
    n = (x * LOG2E).round()
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = torch.full_like(r, TAYLOR[0])
    for c in TAYLOR[1:]:
        p = p * r + c
    return p * ((n.to(torch.int32) + 127) << 23).view(torch.float32)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return 1.0 / (exp(-x) + 1.0)


def logsigmoid(x: Tensor) -> Tensor:
    """min(x, 0) - log(1 + e^-|x|)."""
    e = exp(-x.abs())
    s = e / (e + 2.0)
    z = s * s
    p = torch.full_like(x, ATANH[0])
    for c in ATANH[1:]:
        p = p * z + c
    return torch.where(x > 0, 0.0, x) - (p * s) * 2.0


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x) = (1 + erf(x/√2)) / 2 to 1e-7."""
    a = x.abs() * ROOT_HALF
    t = 1.0 / (a * ERF_P + 1.0)
    p = torch.full_like(x, ERF[0])
    for c in ERF[1:]:
        p = p * t + c
    tail = ((p * t) * exp(-(a * a))) * 0.5
    return torch.where(x < 0, tail, 1.0 - tail)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": exp,
    "sigmoid": sigmoid,
    "silu": lambda x: x / (exp(-x) + 1.0),
    "gelu": lambda x: x * normal_cdf(x),
    "gelu_tanh": lambda x: x * sigmoid((x * x * x * 0.044715 + x) * GELU),  # (1 + tanh y) / 2 = σ(2y)
    "relu": lambda x: torch.where(x < 0, 0.0, x),
    "relu2": lambda x: torch.where(x < 0, 0.0, x) * torch.where(x < 0, 0.0, x),
    "elu1": lambda x: torch.where(x > 0, x + 1.0, exp(x)),
    "logsigmoid": logsigmoid,
}
SUMS: dict[str, Callable[[Tensor], Tensor]] = {"sum": lambda x: x, "abs": torch.abs, "square": lambda x: x * x}


def unary_naive(x: Tensor, form: str) -> Tensor:
    """The definition: one of `FORMS` on every number of `x`."""
    return FORMS[form](x)


def row_sum_naive(x: Tensor, form: str) -> Tensor:
    """The definition: folded sums of x, |x| or x² over the last dimension, ``[N, D] -> [N]``."""
    return fold(SUMS[form](x))


def attend_naive(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """The definition: scores folded over channels, numerator and denominator summed key by key.

    q ``[B,T,H,K]``, k ``[B,S,G,K]``, v ``[B,S,G,V]``, allowed ``[B,T,S]``; a query that may see nothing gives 0.
    """
    b, t, h, width = q.shape
    groups, keys = k.shape[2], k.shape[1]
    q = (q * width**-0.5).reshape(b, t, groups, h // groups, width)
    if not keys:
        return q.new_zeros(b, t, h, v.shape[-1])
    scores = torch.stack([fold(q * k[:, j, None, :, None]) for j in range(keys)], -1)  # [B,T,G,R,S]
    seen = allowed[:, :, None, None]
    scores = scores.masked_fill(~seen, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    weights = torch.where(seen, exp(scores - torch.where(seen.any(-1, keepdim=True), top, 0.0)), 0.0)
    out, norm = q.new_zeros(*q.shape[:-1], v.shape[-1]), q.new_zeros(*q.shape[:-1], 1)
    for j in range(keys):
        w = weights[..., j, None]
        out = torch.where(w == 0, out, out + w * v[:, j, None, :, None])
        norm = norm + w
    return (out / torch.where(norm > 0, norm, 1.0)).reshape(b, t, h, v.shape[-1])


def scan_naive(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, s: Tensor, z: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition of the recurrence of `linear_scan`, read out folded over K; gate and keep may be empty."""
    b, t_all, h, width = q.shape
    groups = k.shape[2]
    q = q.reshape(b, t_all, groups, h // groups, width)
    outs, norms = [], []
    for t in range(t_all):
        if len(keep):
            kept = keep[:, t, None, None]
            s, z = torch.where(kept[..., None], s, 0.0), torch.where(kept, z, 0.0)
        if len(gate):
            s, z = s * gate[:, t, :, :, None], z * gate[:, t]
        s = s + k[:, t, :, :, None] * v[:, t, :, None, :]
        z = z + k[:, t]
        outs.append(fold(q[:, t, :, :, :, None] * s[:, :, None], 3))
        norms.append(fold(q[:, t] * z[:, :, None]))
    if not outs:
        return q.new_zeros(b, 0, h, v.shape[-1]), q.new_zeros(b, 0, h), s, z
    return torch.stack(outs, 1).flatten(2, 3), torch.stack(norms, 1).flatten(2, 3), s, z


_UNARY = Operands("exact_unary", "x [*] float32")
_ROWS = Operands("exact_row_sum", "x [N,D] float32")
_ATTEND = Operands(
    "exact_attend", "q [B,T,H,K] float32", "k [B,S,G,K] float32", "v [B,S,G,V] float32", "allowed [B,T,S] bool"
)
_SCAN = Operands(
    "exact_scan", "q [B,T,H,K] float32", "k [B,T,G,K] float32", "v [B,T,G,V] float32",
    "gate [B,T,G,K] float32 or empty", "s [B,G,K,V] float32", "z [B,G,K] float32", "keep [B,T] bool or empty",
)  # fmt: skip


def check_unary(x: Tensor, form: str) -> None:
    """The operands of `unary_naive`."""
    _UNARY(x)
    check_choice("exact_unary", "form", form, FORMS)


def check_row_sum(x: Tensor, form: str) -> None:
    """The operands of `row_sum_naive`."""
    _ROWS(x)
    check_choice("exact_row_sum", "form", form, SUMS)


def shared_heads(operator: str, heads: int, groups: int) -> None:
    """Query heads are shared out evenly to the key/value heads."""
    if not groups or heads % groups:
        raise OperandError(f"{operator}: {heads} query heads are no multiple of {groups} key/value heads")


def check_attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> None:
    """The operands of `attend_naive`."""
    sizes = _ATTEND(q, k, v, allowed)
    shared_heads("exact_attend", sizes["H"], sizes["G"])


def check_scan(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, s: Tensor, z: Tensor, keep: Tensor) -> None:
    """The operands of `scan_naive`."""
    sizes = _SCAN(q, k, v, gate, s, z, keep)
    shared_heads("exact_scan", sizes["H"], sizes["G"])


UNARY = Operator("exact_unary", unary_naive, check=check_unary, samples=imported_later("fastsnn_integer.samples.unary"))
ROW_SUM = Operator(
    "exact_row_sum", row_sum_naive, check=check_row_sum, samples=imported_later("fastsnn_integer.samples.row_sum")
)
ATTEND = Operator(
    "exact_attend", attend_naive, check=check_attend, samples=imported_later("fastsnn_integer.samples.attend")
)
SCAN = Operator("exact_scan", scan_naive, check=check_scan, samples=imported_later("fastsnn_integer.samples.scan"))


def unary(x: Tensor, form: str) -> Tensor:
    """One of `FORMS`: ``exp``, ``silu``, ``relu``, ``relu2`` (its square), ``elu1`` (elu + 1), ``logsigmoid``, …."""
    return UNARY(x.device.type, x.detach().float(), form).to(x.dtype)


def row_sum(x: Tensor, form: str = "sum") -> Tensor:
    """Sum of x, |x| (``abs``) or x² (``square``) over the last dimension, ``[…, D] -> […, 1]``."""
    rows = x.detach().float().reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return ROW_SUM(x.device.type, rows, form).reshape(*x.shape[:-1], 1).to(x.dtype)


def root(x: Tensor) -> Tensor:
    """√ of float32 numbers, rounded correctly: torch's own (MKL) is one unit off for a fifth of them, and which depends
    on their place in the buffer; a double root, rounded once more, is not."""
    return x.double().sqrt().float()


def norm_naive(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition: x / √(mean x² + eps), times the weight unless that is empty; ``[N, D] -> [N, D]``."""
    rows = rows / root(row_sum(rows, "square") / rows.shape[-1] + eps)
    return rows * weight if weight.numel() else rows


_NORM = Operands("exact_norm", "rows [N,D] float32", "weight [D] float32 or empty")


def check_norm(rows: Tensor, weight: Tensor, eps: float) -> None:
    """The operands of `norm_naive`."""
    _NORM(rows, weight)
    check_finite_numbers("exact_norm", eps=eps)


NORM = Operator(
    "exact_norm", norm_naive, plain=True, check=check_norm, samples=imported_later("fastsnn_integer.samples.norms")
)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight over the last dimension."""
    rows = x.detach().float().reshape(math.prod(x.shape[:-1]), x.shape[-1])
    by = rows.new_empty(0) if weight is None else weight.detach().float()
    return NORM(x.device.type, rows, by, eps).reshape(x.shape).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention ``[B,T,H,V]``; `allowed` ``[B|1,T,S]``, without it the last query is the newest key's own."""
    b, t, keys = q.shape[0], q.shape[1], k.shape[1]
    if allowed is None:
        allowed = torch.ones(1, t, keys, dtype=torch.bool, device=q.device).tril(keys - t)
    rows = (x.detach().float() for x in (q, k, v))
    return ATTEND(q.device.type, *rows, allowed.expand(b, t, keys)).to(q.dtype)


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    state: tuple[Tensor, Tensor] | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """`linear_scan`, token by token: ``(o, n, (S, z))``."""
    kind, empty = q.dtype, q.new_empty(0, dtype=torch.float32)
    gate = empty if log_g is None else unary(log_g.float(), "exp")
    keep = empty.bool() if reset is None else ~reset
    rows = (x.detach().float() for x in (q, k, v))
    o, n, s, z = SCAN(q.device.type, *rows, gate, *(x.detach().float() for x in initial_state(q, k, v, state)), keep)
    return o.to(kind), n.to(kind), (s.to(kind), z.to(kind))
