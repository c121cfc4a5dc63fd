"""Gated linear attention (GLA): a state per key/value head that decays by learned, data-dependent gates."""

from __future__ import annotations

import math
from typing import NamedTuple

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import Attention, Dims, Heads, hookimpl, param
from fastsnn_core.lowering import GateForm, LinearAttentionForm, lower
from fastsnn_integer import deterministic
from fastsnn_linear_scan import MIN_LOG_GATE, linear_scan
from fastsnn_modules.shown import constants

__version__ = "0.1.0"


class GlaState(NamedTuple):
    """Running state of a stream: kv_acc ``[B,G,K,V]`` and z_acc ``[B,G,K]`` (kept for symmetry with `linear`)."""

    kv_acc: Tensor
    z_acc: Tensor


@frozen
class Gla(Attention):
    """S_t = diag(g_t) S_{t-1} + relu(k_t)ᵀ v_t;  o_t = RMSNorm(K^-½ relu(q_t) S_t);  log g = logsigmoid(W₂W₁x + b)/τ.

    One gate per key channel of each key/value head, W₁ of low rank; no positions, no output gate. The state is kept
    per key/value head (G of them), not per query head. Heads q [B,T,H,K], k, v [B,T,G,K], x [B,T,D] -> o [B,T,H,K].
    Yang et al. 2023 (arXiv 2312.06635), in the form of SpikingBrain-7B; log g has a floor of -5 (ours), which keeps
    the chunked form inside float32.
    """

    name = "gla"
    rank: int = param(16, ge=1, le=4096, doc="rank of the gate projection", draw=(2, 4))
    tau: float = param(16.0, gt=0.0, le=1e3, doc="divides the log-gate: larger forgets more slowly")
    eps: float = param(1e-5, gt=0.0, le=1.0, doc="of the per-head norm")
    reach: float = param(
        0.0,
        ge=0.0,
        le=2.0**30,
        unit="tokens",
        doc="half-life of each head's slowest channel in new weights; the others are spread down to tau; 0: all tau",
        draw=(0.0, 64.0),
    )

    def build(self, dims: Dims) -> GlaMixer:
        """The mixer, with its own gates and norm."""
        return GlaMixer(self, dims)

    def forgetting(self, scale: float, length: int) -> Gla:
        """The same with every log-gate multiplied by `scale`: above 1 it forgets faster."""
        return attrs.evolve(self, tau=min(1e3, self.tau / scale))


class GlaMixer(nn.Module):
    """``(heads, state, reset) -> (o, state)``."""

    batch_invariant = False

    def __init__(self, spec: Gla, dims: Dims) -> None:
        super().__init__()
        self.tau, self.dims = spec.tau, dims
        self.gate_down = nn.Linear(dims.d_model, spec.rank, bias=False)
        self.gate_up = nn.Linear(spec.rank, dims.n_kv_heads * dims.head_dim)
        self.norm = nn.RMSNorm(dims.head_dim, eps=spec.eps)
        self.spread = spec.reach > spec.tau
        self.half_lives = half_lives(dims.head_dim, spec.tau, spec.reach)
        self.initialise_()

    def extra_repr(self) -> str:
        """Its constants."""
        return constants(self, "tau")

    @torch.no_grad()
    def initialise_(self) -> None:
        """Gate biases that give every channel its half-life; a model calls this after its own initialisation.

        With a `reach` the input moves the gates a tenth as much at first: what is meant to last is not forgotten by the
        way, before anything is stored there.
        """
        if self.spread:
            self.gate_up.weight.mul_(0.1)
        bias = [-math.log(math.expm1(self.tau * math.log(2) / n)) for n in self.half_lives]
        self.gate_up.bias.copy_(torch.tensor(bias).repeat(self.dims.n_kv_heads))

    def adopt(self, spec: Gla) -> None:
        """Take over what can change after training: tau."""
        self.tau = spec.tau

    def log_gate(self, heads: Heads) -> Tensor:
        """log g ``[B,T,G,K]``, in float32 at least."""
        logits = self.gate_up(self.gate_down(heads.x))
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        gate = deterministic.unary(logits, "logsigmoid") if self.batch_invariant else F.logsigmoid(logits)
        gate = (gate / self.tau).clamp_min(MIN_LOG_GATE)
        return gate.unflatten(-1, (self.dims.n_kv_heads, self.dims.head_dim))

    def lower(self) -> tuple[LinearAttentionForm, ...]:
        """Gated sums of relu(k)ᵀ v, read by K^-½ relu(q) and normalised."""
        gate = GateForm(lower(self.gate_down, "gate_down"), lower(self.gate_up, "gate_up"), self.tau, MIN_LOG_GATE)
        scale, norm = self.dims.head_dim**-0.5, lower(self.norm, "norm")
        return (LinearAttentionForm("relu", gate=gate, query_scale=scale, norm=norm),)

    def pack_state(self, state: GlaState) -> list[tuple[Tensor, Tensor]]:
        """S ``[G,K,V]`` and z ``[G,K]`` of one stream."""
        return [(state.kv_acc[0], state.z_acc[0])]

    def unpack_state(self, pairs: list[tuple[Tensor, Tensor]]) -> GlaState:
        """The inverse."""
        return GlaState(*(x[None] for x in pairs[0]))

    def forward(
        self, heads: Heads, state: GlaState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, GlaState]:
        """Mix the tokens of a (piece of a) stream."""
        q = F.relu(heads.q) * self.dims.head_dim**-0.5
        scan = deterministic.scan if self.batch_invariant else linear_scan
        out, _, (kv, z) = scan(q, F.relu(heads.k), heads.v, self.log_gate(heads), state, reset)
        return self.norm(out.to(heads.q.dtype)), GlaState(kv, z)


def half_lives(channels: int, nearest: float, farthest: float) -> list[float]:
    """Half-lives in tokens, spread evenly in their logarithm; all `nearest` where `farthest` is not farther."""
    ratio = max(1.0, farthest / nearest)
    return [nearest * ratio ** (i / max(1, channels - 1)) for i in range(channels)]


@hookimpl
def fastsnn_attentions() -> list[type[Attention]]:
    """This plugin's attentions."""
    return [Gla]
