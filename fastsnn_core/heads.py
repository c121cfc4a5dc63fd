"""What a model hands its attentions: sizes once (`Dims`), and per call the projected heads (`Heads`)."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from fastsnn_core.spike_tensor import SpikeTensor


@attrs.frozen
class Dims:
    """Sizes of one attention layer: D, H query heads, G key/value heads, K = V channels per head."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int


@attrs.define(eq=False)  # not frozen: torch.compile cannot trace a frozen class being made
class Heads:
    """q ``[B,T,H,K]``, k and v ``[B,T,G,K]``, and the layer input `x` ``[B,T,D]`` (spikes) for gates.

    Those that the attention does not name in its ``projections`` are empty ``[B,T,0,K]``.
    `cos` and `sin` ``[B,T,K/2]`` are the rotary angles of the tokens' absolute positions.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    x: SpikeTensor | Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None

    def rotated(self) -> tuple[Tensor, Tensor]:
        """q and k with rotary positions (half-split pairs, as Llama and Qwen); as they are without angles."""
        if self.cos is None or self.sin is None:
            return self.q, self.k
        return rotate_heads(self.q, self.cos, self.sin), rotate_heads(self.k, self.cos, self.sin)


def rotate_heads(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs ``(x_i, x_{i+K/2})`` by the angles; x ``[B,T,H,K]``, cos and sin ``[B,T,K/2]``."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
