"""(Gated) linear attention over tokens: chunk-parallel for T > 1, recurrent for T = 1, a naive loop that defines both.

For each stream and key/value head, with queries of the R heads that share it:

    S_t = diag(g_t) S_{t-1} + k_tᵀ v_t        z_t = g_t ∘ z_{t-1} + k_t        o_t = q_t S_t        n_t = q_t · z_t

g_t = exp(log_g_t) is 1 where no gate is given. A reset at t clears S and z before the token is taken in.

Chunked, with L = cumulative log-gates inside a chunk of C tokens:

    o_i = (q_i e^{L_i}) S + Σ_{j≤i} (q_i e^{L_i-L_j} · k_j) v_j        S' = e^{L_C} S + Σ_j (k_j e^{L_C-L_j})ᵀ v_j

The exponentials are taken relative to the middle of the chunk, so with log_g >= `MIN_LOG_GATE` = -5 and C = 32 none
leaves float32's range. Shapes: q ``[B,T,H,K]``, k and log_g ``[B,T,G,K]``, v ``[B,T,G,V]``, S ``[B,G,K,V]``,
z ``[B,G,K]``, o ``[B,T,H,V]``, n ``[B,T,H]``; H is a multiple of G. Everything is done in at least float32.
Source: Yang et al. 2023 (GLA, arXiv 2312.06635), written anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor

from fastsnn_core.moved import renamed
from fastsnn_modules.operands import OperandError, Operands
from fastsnn_modules.over_time import exporting, over_time

__version__ = "0.1.0"

MIN_LOG_GATE = -5.0
State = tuple[Tensor, Tensor]
GraphForm = Callable[[Tensor, Tensor, Tensor, Tensor | None, State], tuple[Tensor, Tensor, State]]
GRAPH_FORM: ContextVar[GraphForm | None] = ContextVar("linear_scan.graph_form", default=None)
"""What stands for `linear_scan` in an exported graph, where its runtime has an operator; a loop over time for None."""


_OPERANDS = Operands(
    "linear_scan", "q [B,T,H,K] float", "k [B,T,G,K] as q", "v [B,T,G,V] as q", "log_g [B,T,G,K] float or empty",
    "S [B,G,K,V] float", "z [B,G,K] as S", "reset [B,T] bool or empty",
)  # fmt: skip


def check_linear_scan(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: State | None, reset: Tensor | None
) -> None:
    """The operands of all three forms; a state belongs to the streams, heads and widths that it came from."""
    if state is not None and (not isinstance(state, tuple | list) or len(state) != 2):
        raise OperandError(f"linear_scan: a state is the pair (S [B,G,K,V], z [B,G,K]), got {type(state).__name__}")
    rows = [(0, q), (1, k), (2, v), (3, log_g), *((4 + i, t) for i, t in enumerate(state or ())), (6, reset)]
    sizes = _OPERANDS.some((i, t) for i, t in rows if t is not None)
    if not sizes["G"] or sizes["H"] % sizes["G"]:
        raise OperandError(
            f"linear_scan: {sizes['H']} query heads are no multiple of {sizes['G']} key/value heads: q is "
            f"{list(q.shape)}, k {list(k.shape)}"
        )


def initial_state(q: Tensor, k: Tensor, v: Tensor, state: State | None) -> State:
    """The given state, or zeros ``(S [B,G,K,V], z [B,G,K])``."""
    if state is not None:
        return state
    b, _, g, width = k.shape
    return k.new_zeros(b, g, width, v.shape[-1]), k.new_zeros(b, g, width)


def linear_scan_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    state: State | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """The definition: a loop over T. Returns ``(o, n, (S, z))``."""
    check_linear_scan(q, k, v, log_g, state, reset)
    s, z = initial_state(q, k, v, state)
    b, t_all, h, width = q.shape
    groups = k.shape[2]
    outs, norms = [], []
    for t in range(t_all):
        if reset is not None:
            keep = (~reset[:, t]).to(s.dtype)[:, None, None]
            s, z = s * keep[..., None], z * keep
        if log_g is not None:
            gate = log_g[:, t].exp()
            s, z = s * gate[..., None], z * gate
        s = s + k[:, t, :, :, None] * v[:, t, :, None, :]
        z = z + k[:, t]
        heads = q[:, t].reshape(b, groups, h // groups, width)
        outs.append((heads @ s).reshape(b, h, v.shape[-1]))
        norms.append((heads @ z[..., None]).reshape(b, h))
    if not outs:
        return q.new_zeros(b, 0, h, v.shape[-1]), q.new_zeros(b, 0, h), (s, z)
    return torch.stack(outs, 1), torch.stack(norms, 1), (s, z)


def linear_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    state: State | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """The recurrent form for one token (T = 1): constant work and memory, whatever came before."""
    return linear_scan_naive(q, k, v, log_g, state, reset)


def linear_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    state: State | None = None,
    reset: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, State]:
    """The chunk-parallel form, equal to the naive one to rounding; ``chunk`` defaults to 32 with gates, else 64."""
    check_linear_scan(q, k, v, log_g, state, reset)
    if chunk is not None and chunk < 1:
        raise OperandError(f"linear_scan: a chunk has at least 1 token, got {chunk}")
    plain = contextlib.nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False)
    with plain:
        if q.dtype in (torch.bfloat16, torch.float16):
            q, k, v = q.float(), k.float(), v.float()
            log_g = None if log_g is None else log_g.float()
        if exporting(q) and reset is None:
            return (GRAPH_FORM.get() or linear_scan_loop)(q, k, v, log_g, initial_state(q, k, v, state))
        if q.shape[1] <= 1:
            return linear_step(q, k, v, log_g, state, reset)
        return _chunked(
            q, k, v, log_g, initial_state(q, k, v, state), reset, chunk or (32 if log_g is not None else 64)
        )


def linear_scan_loop(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: State
) -> tuple[Tensor, Tensor, State]:
    """The definition as one loop of an exported graph, for any T; operands and results are those of `linear_scan`."""
    shared = q.shape[2] // k.shape[2]
    gates = () if log_g is None else (log_g.exp(),)

    def token(old: tuple[Tensor, ...], row: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        (s, z), (q_t, k_t, v_t, *gate) = old, row
        if gate:
            s, z = s * gate[0][..., None], z * gate[0]
        s, z = s + k_t[..., None] * v_t[..., None, :], z + k_t
        heads = q_t.unflatten(1, (-1, shared))  # [B,G,R,K]
        return (s, z), ((heads @ s).flatten(1, 2), (heads @ z[..., None]).flatten(1, 3))

    (s, z), (out, norm) = over_time(token, state, (q, k, v, *gates))
    return out, norm, (s, z)


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: State, reset: Tensor | None, size: int
) -> tuple[Tensor, Tensor, State]:
    b, t_all, h, width = q.shape
    groups = k.shape[2]
    n = -(-t_all // size)
    pad = n * size - t_all

    def chunks(x: Tensor) -> Tensor:  # [B,T,·,W] -> [B,·,N,C,W]
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, pad)) if pad else x
        return x.reshape(b, n, size, *x.shape[2:]).permute(0, 3, 1, 2, 4)

    kc, vc = chunks(k), chunks(v)
    qc = chunks(q).reshape(b, groups, h // groups, n, size, width).transpose(2, 3)  # [B,G,N,R,C,K]
    if log_g is not None:
        decay = chunks(log_g).cumsum(3)  # L [B,G,N,C,K]; padded tokens have log-gate 0
        last = decay[:, :, :, -1:]
        middle = decay[:, :, :, size // 2 : size // 2 + 1].detach()
        # two exponentials, not one and its inverse: the gradient of 1/e^x squares e^x and leaves float32
        q_in, k_in = qc * (decay - middle).exp()[:, :, :, None], kc * (middle - decay).exp()
        q_state, k_state = qc * decay.exp()[:, :, :, None], kc * (last - decay).exp()
        carry = last.squeeze(3).exp()  # [B,G,N,K]
    else:
        q_in, k_in, q_state, k_state, carry = qc, kc, qc, kc, None

    causal = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    fresh = None
    if reset is not None:
        marks = torch.nn.functional.pad(reset, (0, pad)) if pad else reset
        segment = marks.reshape(b, n, size).cumsum(2)  # documents started so far in the chunk [B,N,C]
        causal = causal & (segment[:, :, :, None] == segment[:, :, None, :])[:, None, :, None]
        old, newest = segment == 0, segment == segment[:, :, -1:]
        q_state = q_state * old[:, None, :, None, :, None].to(q.dtype)
        k_state = k_state * newest[:, None, :, :, None].to(k.dtype)
        fresh = old[:, :, -1].to(q.dtype)[:, None, :, None]  # [B,1,N,1]: 0 where the chunk clears the state

    scores = (q_in.flatten(3, 4) @ k_in.transpose(-1, -2)).unflatten(3, (h // groups, size))  # [B,G,N,R,C,C]
    scores = scores.masked_fill(~causal, 0.0)
    added = k_state.transpose(-1, -2) @ vc  # [B,G,N,K,V]
    added_z = k_state.sum(3)  # [B,G,N,K]
    s, z = state
    before_s, before_z = [], []
    # taken apart once: the backward of each added[:, :, i] would fill a tensor as large as all of them
    shares = [x.unbind(2) for x in (carry, fresh) if x is not None]
    for i, (more_s, more_z) in enumerate(zip(added.unbind(2), added_z.unbind(2))):
        before_s.append(s)
        before_z.append(z)
        for share in shares:
            s, z = s * share[i][..., None], z * share[i]
        s, z = s + more_s, z + more_z
    past_s, past_z = torch.stack(before_s, 2), torch.stack(before_z, 2)
    rows = q_state.flatten(3, 4)  # [B,G,N,R·C,K]
    out = scores.flatten(3, 4) @ vc + rows @ past_s  # [B,G,N,R·C,V]
    norm = scores.sum(-1) + (rows @ past_z[..., None]).squeeze(-1).unflatten(3, (h // groups, size))  # [B,G,N,R,C]

    def tokens(x: Tensor) -> Tensor:  # [B,G,N,R,C,W] -> [B,T,H,W]
        return x.permute(0, 2, 4, 1, 3, 5).reshape(b, n * size, h, x.shape[-1])[:, :t_all]

    return tokens(out.unflatten(3, (h // groups, size))), tokens(norm[..., None]).squeeze(-1), (s, z)


__getattr__ = renamed(__name__, {"start": "initial_state"})
