"""`recurrent_scan`: a leaky layer whose spikes come back through a matrix, over all tokens, with its gradient.

In thresholds θ, for each stream b, R ``[D,D]``:

    u_t = β v_{t-1} + x_t + R s_{t-1} / θ      s_t = 1[u_t >= 1]      v_t = u_t - s_t  (hard reset: u_t (1 - s_t))

Before a token that begins a document v and s are 0. Backward, σ the surrogate derivative, resets detached:

    ∂u_t = σ(u_t) (∂s_t + Rᵀ ∂u_{t+1} / θ) + r_t β ∂u_{t+1}      ∂x_t = ∂u_t      ∂R = Σ_t ∂u_t s_{t-1}ᵀ / θ

r_t is 1, with a hard reset 1 - s_t. A step is one matrix product and one pass over its row, forwards and backwards, and
∂R is one product over all tokens: autograd would keep a graph of ten operations a token, and take T products for ∂R.
Values are those of the loop bit for bit; gradients add up in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _RecurrentScan(torch.autograd.Function):
    """Tokens first: x ``[T,B,D]`` -> u and s ``[T,B,D]``, v ``[B,D]``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor, s: Tensor, weight: Tensor, theta: Tensor, keep: Tensor, how: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        beta, hard, _ = how
        u_all, s_all, row, first, matrix = torch.empty_like(x), torch.empty_like(x), torch.empty_like(v), s, weight.T
        v = v.clone()
        for t, (now, u, spikes) in enumerate(zip(x, u_all, s_all)):
            if len(keep):
                v, s = (torch.where(keep[t], z, torch.zeros_like(z)) for z in (v, s))
            torch.mm(s, matrix, out=row)
            torch.mul(v, beta, out=u)
            u.add_(now).add_(row.div_(theta))
            torch.ge(u, 1.0, out=spikes)
            if hard:
                torch.mul(u, 1 - spikes, out=v)
            else:
                torch.sub(u, spikes, out=v)
            s = spikes
        ctx.save_for_backward(u_all, s_all, first, weight, theta, keep)
        ctx.how = how
        return u_all, s_all, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_u: Tensor | None, grad_s: Tensor | None, grad_v: Tensor | None) -> tuple[Any, ...]:
        u_all, s_all, first, weight, theta, keep = ctx.saved_tensors
        beta, hard, slope = ctx.how
        sigma = slope(u_all)
        out, back, carry = torch.empty_like(u_all), torch.zeros_like(first), torch.zeros_like(first)
        carry = carry if grad_v is None else carry + grad_v
        for t in reversed(range(len(u_all))):
            now = out[t]
            if grad_s is not None:
                back = back.add_(grad_s[t])
            if hard:
                carry = carry * (1 - s_all[t])
            torch.addcmul(carry, back, sigma[t], out=now)
            if grad_u is not None:
                now.add_(grad_u[t])
            torch.mm(now, weight, out=back)
            back.div_(theta)
            carry = torch.mul(now, beta)
            if len(keep):
                carry, back = (torch.where(keep[t], z, torch.zeros_like(z)) for z in (carry, back))
        wide = weight.shape[0]
        if len(keep):
            before = torch.cat([first[None], s_all[:-1]]) * keep.to(s_all.dtype)
            grad_weight = out.view(-1, wide).T @ before.view(-1, wide)
        else:
            grad_weight = out[1:].view(-1, wide).T @ s_all[:-1].view(-1, wide)
            grad_weight.addmm_(out[0].T, first)
        return out, carry, back, grad_weight / theta, None, None, None


def recurrent_scan(
    x: Tensor, state: tuple[Tensor, Tensor], reset: Tensor | None, weight: Tensor, theta: Tensor, how: tuple[Any, ...]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]] | None:
    """Potentials and spikes ``[B,T,D]`` of x ``[B,T,D]`` in thresholds, and the last state (v, s).

    `how` is β, a hard reset, and the surrogate derivative as a function of u. None where a potential is NaN: the loop
    says what comes of it. Torch refuses a second derivative (RuntimeError).
    """
    v, s = state
    keep = x.new_empty(0, dtype=torch.bool) if reset is None else ~reset.T[..., None]
    rows = x.transpose(0, 1).contiguous()
    u, spikes, v = _RecurrentScan.apply(rows, v.contiguous(), s.contiguous(), weight, theta, keep, how)
    if bool(u.detach().isnan().any()):
        return None
    return u.transpose(0, 1), spikes.transpose(0, 1), (v, spikes[-1])
