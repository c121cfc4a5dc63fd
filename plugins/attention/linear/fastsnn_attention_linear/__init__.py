"""Linear attention: non-negative features, running sums instead of a cache."""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import Attention, Dims, Heads, hookimpl, param
from fastsnn_core.lowering import LinearAttentionForm
from fastsnn_integer import deterministic
from fastsnn_linear_scan import linear_scan
from fastsnn_modules.shown import constants

__version__ = "0.1.0"

FEATURES = {"elu1": lambda x: F.elu(x) + 1, "relu": F.relu, "sigmoid": torch.sigmoid}


class LinearState(NamedTuple):
    """Running sums of a stream: kv_acc ``[B,G,K,V]`` = Σ φ(k)ᵀ v, z_acc ``[B,G,K]`` = Σ φ(k)."""

    kv_acc: Tensor
    z_acc: Tensor


@frozen
class Linear(Attention):
    """o_t = φ(q_t) kv_t / (φ(q_t)·z_t + ε);  kv_t = e^-δ kv_{t-1} + φ(k_t)ᵀ v_t;  z_t = e^-δ z_{t-1} + φ(k_t).

    φ is elu + 1, ReLU or sigmoid; no positions. Heads q [B,T,H,K], k, v [B,T,G,K] -> o [B,T,H,K]; the state is
    constant in T. Chunk-parallel for T > 1, recurrent for T = 1. Katharopoulos et al. 2020 (arXiv 2006.16236); with a
    decay δ, of which there is none by default, the gate of Sun et al. 2023 (RetNet, arXiv 2307.08621).
    """

    name = "linear"
    feature: str = param("elu1", choices=tuple(FEATURES), doc="non-negative feature map φ of queries and keys")
    eps: float = param(1e-6, gt=0.0, le=1.0, doc="ε in the denominator")
    decay: float = param(0.0, ge=0.0, le=5.0, unit="nats per token", doc="δ, how fast old tokens fade; 0: never")

    def build(self, dims: Dims) -> LinearMixer:
        """The mixer."""
        return LinearMixer(self)

    def forgetting(self, scale: float, length: int) -> Linear:
        """The same with a decay of zero at scale 1, else one that leaves 1/e after length / (scale - 1) tokens."""
        return attrs.evolve(self, decay=min(5.0, max(0.0, self.decay + (scale - 1.0) / length)))


class LinearMixer(nn.Module):
    """``(heads, state, reset) -> (o, state)``."""

    batch_invariant = False

    def __init__(self, spec: Linear) -> None:
        super().__init__()
        self.feature, self.eps, self.decay = spec.feature, spec.eps, spec.decay

    def extra_repr(self) -> str:
        """Its constants."""
        return constants(self, "feature", "decay")

    def adopt(self, spec: Linear) -> None:
        """Take over what can change after training: the decay."""
        self.decay = spec.decay

    def lower(self) -> tuple[LinearAttentionForm, ...]:
        """Sums of φ(k)ᵀ v that fade, read by φ(q) and divided by φ(q)·z + ε."""
        return (LinearAttentionForm(self.feature, decay=self.decay, eps=self.eps),)

    def pack_state(self, state: LinearState) -> list[tuple[Tensor, Tensor]]:
        """S ``[G,K,V]`` and z ``[G,K]`` of one stream."""
        return [(state.kv_acc[0], state.z_acc[0])]

    def unpack_state(self, pairs: list[tuple[Tensor, Tensor]]) -> LinearState:
        """The inverse."""
        return LinearState(*(x[None] for x in pairs[0]))

    def forward(
        self, heads: Heads, state: LinearState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LinearState]:
        """Mix the tokens of a (piece of a) stream."""
        gate = heads.k.new_full(heads.k.shape, -self.decay) if self.decay else None
        if self.batch_invariant:
            q, k = (deterministic.unary(x, self.feature) for x in (heads.q, heads.k))
            out, norm, (kv, z) = deterministic.scan(q, k, heads.v, gate, state, reset)
        else:
            q, k = FEATURES[self.feature](heads.q), FEATURES[self.feature](heads.k)
            out, norm, (kv, z) = linear_scan(q, k, heads.v, gate, state, reset)
        return (out / (norm[..., None] + self.eps)).to(heads.q.dtype), LinearState(kv, z)


@hookimpl
def fastsnn_attentions() -> list[type[Attention]]:
    """This plugin's attentions."""
    return [Linear]
