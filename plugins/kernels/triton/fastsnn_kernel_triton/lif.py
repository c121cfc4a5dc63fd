"""`lif_scan`, its backward and its membrane: programs own a stream and a block of channels, and walk over T.

The membrane stays in registers; x is read once and counts are written once, so the scan is bound by memory. The
backward reads u, recomputed by one pass of `membrane`, and the surrogate's slope, taken elementwise in torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsnn_core.ops.surrogate_gradient import FORMS, derivative, thresholds
from fastsnn_leaky.scan import CHECKPOINT, LifRule, SurrogateForm
from fastsnn_modules.operands import guarded

BLOCK = 128
AS_WRITTEN = {"enable_fp_fusion": False}
"""No fused multiply-add: it rounds once where the naive twin rounds twice, and a last bit can be a whole count."""


@triton.jit
def over(a, b):
    """IEEE division: Triton's own is one unit off in float32."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def half_even(u):
    """Round to the nearest whole number, halves to the even one; infinities and NaN as they are."""
    low = tl.floor(u)
    rest = u - low
    odd = low - 2.0 * tl.floor(low * 0.5) == 1.0
    return tl.where((rest > 0.5) | ((rest == 0.5) & odd), low + 1.0, low)


@triton.jit
def count_of(u, lo, hi, HEAVISIDE: tl.constexpr):
    """round(clip(u, lo, hi)), or 1[u >= 1]."""
    if HEAVISIDE:
        return tl.where(u >= 1.0, 1.0, tl.where(u < 1.0, 0.0, u)).to(u.dtype)  # NaN stays NaN
    clipped = tl.where(u < lo, lo, tl.where(u > hi, hi, u)).to(u.dtype)
    return half_even(clipped)


@triton.jit
def forward_kernel(
    x, v0, keep, theta, counts, v_out, marks, steps, width, beta, lo, hi,
    HAS_KEEP: tl.constexpr, HEAVISIDE: tl.constexpr, HARD: tl.constexpr, EVERY: tl.constexpr, SIZE: tl.constexpr,
    MEMBRANE: tl.constexpr,
):  # fmt: skip
    """Counts, final membrane and checkpoints; with MEMBRANE u instead of counts, and nothing else."""
    row, cols = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    mine = cols < width
    v = tl.load(v0 + row * width + cols, mask=mine, other=0.0)
    scale = tl.load(theta)
    decay, low, high = tl.load(beta), tl.load(lo), tl.load(hi)
    places = tl.cdiv(steps, EVERY)
    for t in range(steps):
        at = (row * steps + t) * width + cols
        if not MEMBRANE and t % EVERY == 0:
            tl.store(marks + (row * places + t // EVERY) * width + cols, v, mask=mine)
        if HAS_KEEP:
            v = tl.where(tl.load(keep + row * steps + t) != 0, v, 0.0).to(v.dtype)
        u = decay * v + over(tl.load(x + at, mask=mine, other=0.0), scale)
        c = count_of(u, low, high, HEAVISIDE)
        v = tl.where(c != 0.0, 0.0, u).to(u.dtype) if HARD else u - c
        tl.store(counts + at, u if MEMBRANE else c, mask=mine)
    if not MEMBRANE:
        tl.store(v_out + row * width + cols, v, mask=mine)


@triton.jit
def backward_kernel(
    grad_c, grad_v, u_all, slope, keep, theta, grad_x, grad_v0, steps, width, beta, lo, hi,
    HAS_KEEP: tl.constexpr, HEAVISIDE: tl.constexpr, HARD: tl.constexpr, ATTACHED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradients of x and of the initial membrane, from the last token to the first."""
    row, cols = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    mine = cols < width
    carry = tl.load(grad_v + row * width + cols, mask=mine, other=0.0)
    scale = tl.load(theta)
    decay, low, high = tl.load(beta), tl.load(lo), tl.load(hi)
    for back in range(steps):
        t = steps - 1 - back
        at = (row * steps + t) * width + cols
        through = carry
        if HARD:
            u = tl.load(u_all + at, mask=mine, other=0.0)
            through = tl.where(count_of(u, low, high, HEAVISIDE) != 0.0, 0.0, carry).to(carry.dtype)
        grad = tl.load(grad_c + at, mask=mine, other=0.0)
        if ATTACHED:
            grad = grad - through
        grad_u = grad * tl.load(slope + at, mask=mine, other=0.0) + through
        tl.store(grad_x + at, over(grad_u, scale), mask=mine)
        carry = decay * grad_u
        if HAS_KEEP:
            carry = tl.where(tl.load(keep + row * steps + t) != 0, carry, 0.0).to(carry.dtype)
    tl.store(grad_v0 + row * width + cols, carry, mask=mine)


def scalar_tensors(x: Tensor, rule: LifRule) -> dict[str, Tensor]:
    """β, lo and hi as one-number tensors in the type of x: a kernel's float argument would be rounded to float32."""
    return {name: x.new_tensor(getattr(rule, name)) for name in ("beta", "lo", "hi")}


def supported(x: Tensor) -> bool:
    """float32 and float64 only."""
    return x.dtype in (torch.float32, torch.float64)


def forward_pass(
    x: Tensor, v: Tensor, keep: Tensor, theta: Tensor, rule: LifRule, membrane: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One forward pass: (counts or u, final v, checkpoints)."""
    b, t, d = x.shape
    x, v = x.contiguous(), v.contiguous()
    out, v_out = torch.empty_like(x), torch.empty_like(v)
    marks = x.new_empty(b, -(-t // CHECKPOINT), d)
    if b and d:
        grid = (b, triton.cdiv(d, BLOCK))
        forward_kernel[grid](
            x=x, v0=v, keep=keep.to(torch.uint8).contiguous(), theta=theta, counts=out, v_out=v_out, marks=marks,
            steps=t, width=d, **scalar_tensors(x, rule), HAS_KEEP=len(keep) > 0, HEAVISIDE=rule.heaviside,
            HARD=rule.hard, EVERY=CHECKPOINT, SIZE=BLOCK, MEMBRANE=membrane, **AS_WRITTEN,
        )  # fmt: skip
    return out, v_out, marks


@guarded("lif_scan")
def forward(x: Tensor, v: Tensor, keep: Tensor, theta: Tensor, rule: LifRule) -> tuple[Tensor, Tensor, Tensor]:
    """As `fastsnn_leaky.scan.forward_naive`."""
    return forward_pass(x, v, keep, theta, rule, False) if supported(x) else NotImplemented


@guarded("lif_membrane")
def membrane(
    x: Tensor, marks: Tensor, keep: Tensor, theta: Tensor, rule: LifRule,
) -> Tensor:  # fmt: skip
    """As `fastsnn_leaky.scan.membrane`."""
    if not supported(x):
        return NotImplemented
    first = marks[:, 0].contiguous() if marks.shape[1] else x.new_zeros(x.shape[0], x.shape[2])
    return forward_pass(x, first, keep, theta, rule, True)[0]


@guarded("lif_scan_backward")
def backward(
    grad_c: Tensor, grad_v: Tensor, x: Tensor, marks: Tensor, keep: Tensor, slope: Tensor, theta: Tensor,
    rule: LifRule, surrogate: SurrogateForm,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `fastsnn_leaky.scan.backward_naive`."""
    if not supported(x):
        return NotImplemented
    b, t, d = x.shape
    u = membrane(x, marks, keep, theta, rule)
    first = thresholds(rule.lo, rule.hi, rule.heaviside)
    s = slope if slope.numel() else derivative(u, FORMS[surrogate.form], surrogate.alpha, *first)
    grad_v = grad_v.contiguous()
    grad_x, grad_v0 = torch.empty_like(u), torch.empty_like(grad_v)
    if b and d:
        grid = (b, triton.cdiv(d, BLOCK))
        backward_kernel[grid](
            grad_c=grad_c.contiguous(), grad_v=grad_v, u_all=u, slope=s.contiguous(),
            keep=keep.to(torch.uint8).contiguous(), theta=theta, grad_x=grad_x, grad_v0=grad_v0, steps=t, width=d,
            **scalar_tensors(x, rule), HAS_KEEP=len(keep) > 0, HEAVISIDE=rule.heaviside, HARD=rule.hard,
            ATTACHED=surrogate.attached, SIZE=BLOCK, **AS_WRITTEN,
        )  # fmt: skip
    return grad_x, grad_v0
