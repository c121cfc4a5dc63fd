"""Sliding-window attention: softmax over exactly the last `window` tokens, self included."""

from __future__ import annotations

from typing import NamedTuple

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import Attention, Dims, Heads, hookimpl, param
from fastsnn_core.lowering import SoftmaxAttentionForm, Unsupported
from fastsnn_integer import deterministic
from fastsnn_integer.quantization import quantize_per_token
from fastsnn_modules.inputs import cache_state, check_reset_mask
from fastsnn_modules.over_time import exporting
from fastsnn_modules.shown import constants

__version__ = "0.1.0"


class WindowState(NamedTuple):
    """The last window-1 keys and values ``[B,W-1,G,K]``, newest last, and which of them exist ``[B,W-1]``.

    In INT8 caches k and v are codes, and `scales` holds two per head vector ``[B,W-1,G,2]``.
    """

    k: Tensor
    v: Tensor
    valid: Tensor
    scales: Tensor | None = None


@frozen
class SlidingWindow(Attention):
    """o_t = Σ_j softmax_j(q_t·k_j / √K) v_j over t - window < j <= t, within the document; rotary positions.

    Heads q [B,T,H,K], k, v [B,T,G,K] -> o [B,T,H,K]. The state holds window - 1 keys and values from the first token
    on, so memory is constant; long inputs are done in blocks, so work is linear in T. Beltagy et al. 2020
    (arXiv 2004.05150); SpikingBrain-7B's odd layers, without their off-by-one between prefill and decoding.
    """

    name = "sliding_window"
    rotary = True
    window: int = param(512, ge=1, le=2**24, unit="tokens", doc="keys each token sees, itself included", draw=(2, 3, 5))

    def build(self, dims: Dims) -> WindowMixer:
        """The mixer."""
        return WindowMixer(self.window)


class WindowMixer(nn.Module):
    """``(heads, state, reset) -> (o, state)``."""

    batch_invariant = False
    kv_bits = 0

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def extra_repr(self) -> str:
        """Its constants."""
        return constants(self, "window")

    def adopt(self, spec: SlidingWindow) -> None:
        """Take over what can change after training: the window; streams begun before do not fit it."""
        self.window = spec.window

    def forward(
        self, heads: Heads, state: WindowState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, WindowState]:
        """Mix the tokens of a (piece of a) stream."""
        cache_state("sliding_window", state, WindowState, heads.k, self.window - 1, bool(self.kv_bits))
        check_reset_mask("sliding_window", reset, heads.q.shape[0], heads.q.shape[1], heads.q.device)
        q, k = heads.rotated()
        v, past, t, scales = heads.v, self.window - 1, q.shape[1], None
        if self.kv_bits:
            k, v, scales = quantise_cache(k, v)
        segment = None if reset is None else reset.cumsum(1)  # documents begun in this piece [B,T]
        fresh = state is None and reset is None
        if state is None:
            blank = k.new_zeros(k.shape[0], past, *k.shape[2:])
            none = torch.zeros(k.shape[0], past, dtype=torch.bool, device=k.device)
            state = WindowState(blank, blank, none, None if scales is None else scales.new_ones(*blank.shape[:3], 2))
        keys, values = torch.cat([state.k, k], 1), torch.cat([state.v, v], 1)
        scales = None if scales is None or state.scales is None else torch.cat([state.scales, scales], 1)
        owner = q.new_zeros(k.shape[0], t, dtype=torch.long) if segment is None else segment
        owners = torch.cat([torch.where(state.valid, 0, -1), owner], 1)  # document of every key; -1: no such key
        if fresh and t <= self.window:
            out = self.attend(q, *dequantise_cache(k, v, None if scales is None else scales[:, past:]), None)
        else:
            out = self.blocks(q, *dequantise_cache(keys, values, scales), owner, owners)
        tail = slice(keys.shape[1] - past, None)
        mine = owners[:, tail] == (owner[:, -1:] if t else 0)
        return out, WindowState(keys[:, tail], values[:, tail], mine, None if scales is None else scales[:, tail])

    def lower(self) -> tuple[SoftmaxAttentionForm, ...]:
        """Keys and values of the last `window` tokens."""
        if self.kv_bits:
            raise Unsupported(f"a cache in {self.kv_bits} bits has no fused form")
        return (SoftmaxAttentionForm(self.window),)

    def pack_state(self, state: WindowState) -> list[tuple[Tensor, Tensor]]:
        """Keys and values ``[n,G,K]`` of one stream's document, oldest first."""
        mine = state.valid[0]
        return [(state.k[0][mine], state.v[0][mine])]

    def unpack_state(self, pairs: list[tuple[Tensor, Tensor]]) -> WindowState:
        """The inverse: the newest window - 1, behind empty slots."""
        past = self.window - 1
        k, v = (x[max(0, len(x) - past) :] for x in pairs[0])
        blank = past - len(k)
        k, v = (torch.cat([x.new_zeros(blank, *x.shape[1:]), x])[None] for x in (k, v))
        return WindowState(k, v, (torch.arange(past, device=k.device) >= blank)[None])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        """Softmax attention under a mask ``[B,T,S]``; causal without."""
        if self.batch_invariant:
            return deterministic.attend(q, k, v, allowed)
        return windowed_attention(q, k, v, None if allowed is None else allowed[:, None])

    def blocks(self, q: Tensor, keys: Tensor, values: Tensor, owner: Tensor, owners: Tensor) -> Tensor:
        """Queries in blocks of C against the C + window - 1 keys they can see."""
        b, t, h, width = q.shape
        past = self.window - 1
        if exporting(q):  # all keys at once: the graph is one for every number of tokens
            i, j = torch.arange(t, device=q.device)[:, None], torch.arange(t + past, device=q.device)[None]
            band = (j >= i) & (j <= i + past)
            return self.attend(q, keys, values, band & (owner[:, :, None] == owners[:, None]))
        size = t if t <= max(2 * self.window, 128) else 128 if self.window <= 256 else 256
        n = -(-t // size) if t else 0
        pad = n * size - t
        if not t:
            return q.new_zeros(b, 0, h, width)
        q = F.pad(q, (0, 0, 0, 0, 0, pad)).reshape(b * n, size, h, width)
        keys, values = (
            F.pad(x, (0, 0, 0, 0, 0, pad))
            .unfold(1, size + past, size)
            .movedim(-1, 2)
            .reshape(b * n, size + past, *x.shape[2:])
            for x in (keys, values)
        )
        owners = F.pad(owners, (0, pad), value=-1).unfold(1, size + past, size).reshape(b * n, 1, size + past)
        owner = F.pad(owner, (0, pad), value=-1).reshape(b * n, size, 1)
        i, j = torch.arange(size, device=q.device)[:, None], torch.arange(size + past, device=q.device)[None]
        band = (j >= i) & (j <= i + past)
        out = self.attend(q, keys, values, band & (owner == owners))
        return out.reshape(b, n * size, h, width)[:, :t]


def quantise_cache(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values in INT8, and their scales ``[B,T,G,2]``: max|·| / 127 of each head vector."""
    (codes_k, scale_k), (codes_v, scale_v) = quantize_per_token(k), quantize_per_token(v)
    return codes_k.to(torch.int8), codes_v.to(torch.int8), torch.cat([scale_k, scale_v], -1)


def dequantise_cache(k: Tensor, v: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values as numbers again."""
    if scales is None:
        return k, v
    return k.to(scales.dtype) * scales[..., :1], v.to(scales.dtype) * scales[..., 1:]


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax attention of ``[B,T,H,K]`` queries with G shared key/value heads; causal where no mask is given."""
    share = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if share > 1:
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=allowed is None and q.shape[2] > 1)
    return out.transpose(1, 2)


@hookimpl
def fastsnn_attentions() -> list[type[Attention]]:
    """This plugin's attentions."""
    return [SlidingWindow]
