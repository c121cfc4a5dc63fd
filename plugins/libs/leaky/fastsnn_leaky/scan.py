"""`lif_scan`: leaky integration and counting over tokens, as one operator with an explicit backward.

With u and v in units of the threshold θ, for each stream b and channel d:

    u_t = β · keep_t · v_{t-1} + x_t / θ      c_t = round(clip(u_t, lo, hi))   (or 1[u_t >= 1])
    v_t = u_t - c_t                           (hard reset: v_t = 0 where c_t ≠ 0)

keep_t is 0 where a new document starts. Backward, with s the surrogate derivative:

    λ_T = ∂L/∂v_T      ∂L/∂u_t = ∂L/∂c_t · s(u_t) + r_t λ_t      ∂L/∂x_t = ∂L/∂u_t / θ      λ_{t-1} = β keep_t ∂L/∂u_t

r_t = ∂v_t/∂u_t is 1 where the reset is detached (with hard reset 0 where c_t ≠ 0), and 1 - s(u_t) where it is
`attached`. A count of many levels leaves a rounding error behind, which does not grow with x: attached, as it is, x_t
gets the gradient of c_t alone; detached, also a share β^n of that of every c_{t+n}, which is false.

Shapes: x, c, u ``[B, T, D]``; v ``[B, D]``; keep ``[B, T]``; θ one number. The forward also returns v at every
`CHECKPOINT` steps, from which a backward kernel recomputes u instead of reading it. The division by θ is part of the
operator, and gradients come in with any strides, because each pass over x that an operation of its own would take costs
as much as the whole scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.ops.dispatch import Operator
from fastsnn_core.ops.surrogate_gradient import FORMS, derivative, thresholds
from fastsnn_modules.inputs import membrane_state, neuron_input
from fastsnn_modules.operands import OperandError, Operands, check_choice, check_finite_numbers, imported_later
from fastsnn_modules.over_time import exporting, over_time

CHECKPOINT = 128


class LifRule(NamedTuple):
    """How a leaky neuron counts: β; the range lo … hi of a count, or 1[u >= 1] in its place; a hard reset."""

    beta: float
    lo: float
    hi: float
    heaviside: bool = False
    hard: bool = False


class SurrogateForm(NamedTuple):
    """The derivative of a count: its place in `surrogate_gradient.FORMS`, its parameter; a gradient through resets."""

    form: int = 0
    alpha: float = 0.0
    attached: bool = False


def step(u: Tensor) -> Tensor:
    """1[u >= 1]; NaN stays NaN, so that it is seen and not counted as silence."""
    return torch.where(u >= 1, 1.0, torch.where(u < 1, 0.0, u)).to(u.dtype)


def count_and_reset(u: Tensor, rule: LifRule) -> tuple[Tensor, Tensor]:
    """The count of u, and the membrane after it."""
    c = step(u) if rule.heaviside else u.clamp(rule.lo, rule.hi).round()
    return c, torch.where(c != 0, torch.zeros_like(u), u) if rule.hard else u - c


def advance(v: Tensor, x: Tensor, rule: LifRule) -> tuple[Tensor, Tensor]:
    """One token: counts and the membrane after it, ``[B,D]``, of v and of x in units of the threshold."""
    return count_and_reset(rule.beta * v + x, rule)


def forward_naive(x: Tensor, v: Tensor, keep: Tensor, theta: Tensor, rule: LifRule) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, a Python loop over T: counts ``[B,T,D]``, final v ``[B,D]``, checkpoints ``[B,⌈T/128⌉,D]``."""
    counts, marks = torch.empty_like(x), []
    for t in range(x.shape[1]):
        if t % CHECKPOINT == 0:
            marks.append(v)
        v = v if not len(keep) else torch.where(keep[:, t, None], v, torch.zeros_like(v))
        counts[:, t], v = advance(v, x[:, t] / theta, rule)
    return counts, v.clone(), torch.stack(marks, 1) if marks else x.new_empty(x.shape[0], 0, x.shape[2])


def backward_naive(
    grad_c: Tensor, grad_v: Tensor, x: Tensor, marks: Tensor, keep: Tensor, slope: Tensor, theta: Tensor,
    rule: LifRule, surrogate: SurrogateForm,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The definition of the backward: gradients of x and of the initial v. `slope` replaces the form where given."""
    first, pieces = thresholds(rule.lo, rule.hi, rule.heaviside), zip(x.split(CHECKPOINT, 1), marks.split(1, 1))
    kept = keep.split(CHECKPOINT, 1) if len(keep) else [keep] * marks.shape[1]
    rows = [membrane(z, v, k, theta, rule) for (z, v), k in zip(pieces, kept)]
    u_all = torch.cat(rows, 1) if rows else x
    s = slope if slope.numel() else derivative(u_all, FORMS[surrogate.form], surrogate.alpha, *first)
    grad_x, carry = torch.empty_like(x), grad_v
    for t in reversed(range(x.shape[1])):
        u = u_all[:, t]
        fired = count_and_reset(u, rule)[0] != 0  # NaN, too: its v was set to 0
        through = torch.where(fired, torch.zeros_like(carry), carry) if rule.hard else carry
        grad = grad_c[:, t] - through if surrogate.attached else grad_c[:, t]
        grad_u = grad * s[:, t] + through
        grad_x[:, t] = grad_u / theta
        carry = rule.beta * grad_u
        carry = carry if not len(keep) else torch.where(keep[:, t, None], carry, torch.zeros_like(carry))
    return grad_x, carry.clone()


def membrane(x: Tensor, marks: Tensor, keep: Tensor, theta: Tensor, rule: LifRule) -> Tensor:
    """u ``[B,T,D]`` recomputed from the checkpoints: what a custom surrogate and SpikeScope look at."""
    u_all = torch.empty_like(x)
    v = marks[:, 0] if marks.shape[1] else None
    for t in range(x.shape[1]):
        assert v is not None
        v = v if not len(keep) else torch.where(keep[:, t, None], v, torch.zeros_like(v))
        u_all[:, t] = u = rule.beta * v + x[:, t] / theta
        v = count_and_reset(u, rule)[1]
    return u_all


_START = Operands("lif_scan", "x [B,T,D] float", "v [B,D] as x", "keep [B,T] bool or empty", "theta [] as x")
_MARKS = Operands("lif_membrane", "x [B,T,D] float", "marks [B,M,D] as x", "keep [B,T] bool or empty", "theta [] as x")
_BACK = Operands(
    "lif_scan_backward", "x [B,T,D] float", "grad_c [B,T,D] as x", "grad_v [B,D] as x", "marks [B,M,D] as x",
    "keep [B,T] bool or empty", "slope [B,T,D] as x or empty", "theta [] as x",
)  # fmt: skip


def check_forward(x: Tensor, v: Tensor, keep: Tensor, theta: Tensor, rule: LifRule) -> None:
    """The operands of `forward_naive`."""
    _START(x, v, keep, theta)
    check_finite_numbers("lif_scan", beta=rule.beta, lo=rule.lo, hi=rule.hi)


def check_membrane(
    x: Tensor, marks: Tensor, keep: Tensor, theta: Tensor, rule: LifRule,
) -> None:  # fmt: skip
    """The operands of `membrane`, which needs the first checkpoint."""
    sizes = _MARKS(x, marks, keep, theta)
    check_finite_numbers("lif_membrane", beta=rule.beta, lo=rule.lo, hi=rule.hi)
    if sizes["T"] and not sizes["M"]:
        raise OperandError("lif_membrane: marks is empty; it must hold the membrane that x starts from")


def check_backward(
    grad_c: Tensor, grad_v: Tensor, x: Tensor, marks: Tensor, keep: Tensor, slope: Tensor, theta: Tensor,
    rule: LifRule, surrogate: SurrogateForm,
) -> None:  # fmt: skip
    """The operands of `backward_naive`."""
    sizes = _BACK(x, grad_c, grad_v, marks, keep, slope, theta)
    check_finite_numbers("lif_scan_backward", beta=rule.beta, lo=rule.lo, hi=rule.hi, alpha=surrogate.alpha)
    check_choice("lif_scan_backward", "form", surrogate.form, range(len(FORMS)))
    if sizes["M"] != -(-sizes["T"] // CHECKPOINT):
        raise OperandError(
            f"lif_scan_backward: marks holds {sizes['M']} checkpoints; {sizes['T']} tokens have one every {CHECKPOINT}"
        )


FORWARD = Operator(
    "lif_scan", forward_naive, check=check_forward, samples=imported_later("fastsnn_leaky.samples.forward")
)
BACKWARD = Operator(
    "lif_scan_backward", backward_naive, check=check_backward, samples=imported_later("fastsnn_leaky.samples.backward")
)
MEMBRANE = Operator(
    "lif_membrane", membrane, check=check_membrane, samples=imported_later("fastsnn_leaky.samples.membrane")
)


def _register_scan_op(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """``torch.ops.fastsnn.name``, which torch's compiler keeps whole.

    `torch.library.custom_op` makes the same and imports the compiler at its first call: seconds, where nothing is
    compiled.
    """
    schema, op = torch.library.infer_schema(function, mutates_args=()), f"fastsnn::{name}"
    torch.library.define(op, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(op, "CompositeExplicitAutograd", function)
    torch.library.register_fake(op, fake)
    return getattr(torch.ops.fastsnn, name).default


# torch's schemas have no records, so these two take the fields of a rule and of a surrogate one by one.


def _scan_forward_op(
    x: Tensor, v: Tensor, keep: Tensor, slope: Tensor, theta: Tensor,
    beta: float, lo: float, hi: float, heaviside: bool, hard: bool, form: int, alpha: float, attached: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return FORWARD(x.device.type, x.contiguous(), v.contiguous(), keep, theta, LifRule(beta, lo, hi, heaviside, hard))


def _scan_shapes(x: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    marks = x.new_empty(x.shape[0], -(-x.shape[1] // CHECKPOINT), x.shape[2])
    return torch.empty_like(x), torch.empty_like(v), marks


def _scan_gradient_op(
    grad_c: Tensor, grad_v: Tensor, x: Tensor, marks: Tensor, keep: Tensor, slope: Tensor, theta: Tensor,
    beta: float, lo: float, hi: float, heaviside: bool, hard: bool, form: int, alpha: float, attached: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rule, surrogate = LifRule(beta, lo, hi, heaviside, hard), SurrogateForm(form, alpha, attached)
    given = grad_c, grad_v.contiguous(), x.contiguous(), marks, keep, slope.contiguous()
    return BACKWARD(x.device.type, *given, theta, rule, surrogate)


def _scan_gradient_shapes(grad_c: Tensor, grad_v: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(grad_v)


_lif_scan = _register_scan_op("lif_scan", _scan_forward_op, _scan_shapes)
_lif_scan_backward = _register_scan_op("lif_scan_backward", _scan_gradient_op, _scan_gradient_shapes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, keep, slope, theta, *ctx.rest = inputs
    ctx.save_for_backward(x, output[2], keep, slope, theta)


def _autograd_backward(ctx: Any, grad_c: Tensor, grad_v: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, marks, keep, slope, theta = ctx.saved_tensors
    grad_x, grad_v0 = _lif_scan_backward(grad_c, grad_v, x, marks, keep, slope, theta, *ctx.rest)
    return grad_x, grad_v0, *[None] * 11


torch.library.register_autograd("fastsnn::lif_scan", _autograd_backward, setup_context=_setup)


class _TransformedScan(torch.autograd.Function):
    """The same gradient for torch.func (grad, vjp, jacrev, vmap), which does not see that of a registered operator."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _lif_scan(*inputs)

    setup_context = staticmethod(_setup)
    backward = staticmethod(_autograd_backward)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise FastSNNError("lif_scan has no forward-mode derivative (jvp, jacfwd); take torch.func.vjp, grad or jacrev")


def lif_scan(
    x: Tensor,
    v: Tensor | None = None,
    reset: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    beta: float,
    lo: float,
    hi: float,
    heaviside: bool = False,
    hard: bool = False,
    attached: bool = False,
    surrogate: tuple[str, float] | Callable[[Tensor, float, float], Tensor] = ("window", 0.5),
) -> tuple[Tensor, Tensor]:
    """Counts ``[B,T,D]`` and the final membrane ``[B,D]`` of `x` ``[B,T,D]``, starting from `v` (zeros).

    `x` is in units of the threshold, or is divided by `scale` θ first; `v` is in units of it either way. `reset`
    ``[B,T]`` marks tokens that start a new document. `surrogate` is a closed form of `rounding` with its parameter,
    fused into the kernel, or a function ``(u, first, last) -> derivative``, which costs one more pass. `attached` lets
    the gradient through the reset (soft resets only); see above for when that is right.

    Errors (FastSNNError): `attached` with a hard reset; shapes, types or devices that do not fit; a membrane of other
    streams.
    """
    if attached and hard:
        raise FastSNNError("lif_scan has no gradient through a hard reset; use a soft one, or leave it detached")
    x = neuron_input("lif_scan", x, None, reset)
    v = membrane_state("lif_scan", x, v)
    keep = ~reset if reset is not None else x.new_empty(0, 0, dtype=torch.bool)
    if scale is not None and (scale.numel() != 1 or (scale.requires_grad and torch.is_grad_enabled())):
        x, scale = x / scale, None  # a threshold that is learnt, or one per channel, gets its gradient from autograd
    theta = x.new_ones(()) if scale is None else scale.detach().reshape(()).to(x.dtype)
    rule = LifRule(beta, lo, hi, heaviside, hard)
    if exporting(x) and reset is None:

        def row(old: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            c, new = advance(old[0], now[0] / theta, rule)
            return (new,), (c,)

        (v,), (counts,) = over_time(row, (v,), (x,))
        return counts, v
    slope = x.new_empty(0)
    form, alpha = ("identity", 0.0) if callable(surrogate) else surrogate
    if callable(surrogate) and torch.is_grad_enabled() and (x.requires_grad or v.requires_grad):
        with torch.no_grad():
            marks = _lif_scan(x, v, keep, slope, theta, *rule, 0, 0.0)[2]
            u = MEMBRANE(x.device.type, x, marks, keep, theta, rule)
            slope = surrogate(u, *thresholds(lo, hi, heaviside)).contiguous()
    scan = _TransformedScan.apply if torch._C._are_functorch_transforms_active() else _lif_scan
    counts, v, _ = scan(x, v, keep, slope, theta, *rule, FORMS.index(form), alpha, attached)
    return counts, v
