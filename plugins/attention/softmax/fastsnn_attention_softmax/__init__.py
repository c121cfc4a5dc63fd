"""Softmax attention: every token sees all before it; the cache grows with the stream."""

from __future__ import annotations

from typing import NamedTuple

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import Attention, Dims, Heads, hookimpl
from fastsnn_core.lowering import SoftmaxAttentionForm, Unsupported
from fastsnn_integer import deterministic
from fastsnn_integer.quantization import quantize_per_token
from fastsnn_modules.inputs import cache_state, check_reset_mask

__version__ = "0.1.0"


class Cache(NamedTuple):
    """All keys and values so far ``[B,P,G,K]`` and whether they belong to the current document ``[B,P]``.

    In INT8 caches k and v are codes, and `scales` holds two per head vector ``[B,P,G,2]``.
    """

    k: Tensor
    v: Tensor
    valid: Tensor
    scales: Tensor | None = None


@frozen
class Softmax(Attention):
    """o_t = Σ_{j<=t} softmax_j(q_t·k_j / √K) v_j within the document; rotary positions.

    Heads q [B,T,H,K], k, v [B,T,G,K] -> o [B,T,H,K]. Work is quadratic in T and the state grows with it. Vaswani et al.
    2017 (arXiv 1706.03762), grouped heads as Ainslie et al. 2023 (arXiv 2305.13245).
    """

    name = "softmax"
    rotary = True

    def build(self, dims: Dims) -> SoftmaxMixer:
        """The mixer."""
        return SoftmaxMixer()


class SoftmaxMixer(nn.Module):
    """``(heads, cache, reset) -> (o, cache)``."""

    batch_invariant = False
    kv_bits = 0

    def lower(self) -> tuple[SoftmaxAttentionForm, ...]:
        """Keys and values of all tokens so far."""
        if self.kv_bits:
            raise Unsupported(f"a cache in {self.kv_bits} bits has no fused form")
        return (SoftmaxAttentionForm(),)

    def pack_state(self, state: Cache) -> list[tuple[Tensor, Tensor]]:
        """Keys and values ``[n,G,K]`` of one stream's document, oldest first: views where all of them are its own."""
        mine = state.valid[0]
        return [(state.k[0], state.v[0]) if bool(mine.all()) else (state.k[0][mine], state.v[0][mine])]

    def unpack_state(self, pairs: list[tuple[Tensor, Tensor]]) -> Cache:
        """The inverse."""
        k, v = (x[None] for x in pairs[0])
        return Cache(k, v, torch.ones(k.shape[:2], dtype=torch.bool, device=k.device))

    def forward(self, heads: Heads, state: Cache | None = None, reset: Tensor | None = None) -> tuple[Tensor, Cache]:
        """Mix the tokens of a (piece of a) stream."""
        cache_state("softmax", state, Cache, heads.k, None, bool(self.kv_bits))
        check_reset_mask("softmax", reset, heads.q.shape[0], heads.q.shape[1], heads.q.device)
        q, k = heads.rotated()
        v, (b, t), scales = heads.v, q.shape[:2], None
        if self.kv_bits:
            (k, scale_k), (v, scale_v) = quantize_per_token(k), quantize_per_token(v)
            k, v, scales = k.to(torch.int8), v.to(torch.int8), torch.cat([scale_k, scale_v], -1)
        owner = reset.cumsum(1) if reset is not None else torch.zeros(b, t, dtype=torch.long, device=q.device)
        allowed, owners = None, owner
        if state is not None:
            owners = torch.cat([torch.where(state.valid, 0, -1), owner], 1)
            k, v = torch.cat([state.k, k], 1), torch.cat([state.v, v], 1)
            scales = None if scales is None or state.scales is None else torch.cat([state.scales, scales], 1)
        cache = Cache(k, v, owners == (owner[:, -1:] if t else 0), scales)
        if scales is not None:
            k, v = k.to(scales.dtype) * scales[..., :1], v.to(scales.dtype) * scales[..., 1:]
        if state is not None or reset is not None:
            causal = torch.ones(t, k.shape[1], dtype=torch.bool, device=q.device).tril(k.shape[1] - t)
            allowed = causal & (owner[:, :, None] == owners[:, None, :])
        if self.batch_invariant:
            return deterministic.attend(q, k, v, allowed), cache
        share = q.shape[2] // k.shape[2]
        heads_k, heads_v = (x.transpose(1, 2).repeat_interleave(share, 1) for x in (k, v))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            heads_k,
            heads_v,
            None if allowed is None else allowed[:, None],
            is_causal=allowed is None and t > 1,
        )
        return out.transpose(1, 2), cache


@hookimpl
def fastsnn_attentions() -> list[type[Attention]]:
    """This plugin's attentions."""
    return [Softmax]
