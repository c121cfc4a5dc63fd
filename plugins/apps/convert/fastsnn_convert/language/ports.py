"""Ports: the spiking projection sites of a decoder's blocks, who reads them, and how their input can be rescaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core import SpikeSite


@attrs.frozen(eq=False)
class Port:
    """A site in front of projections: who reads it, how its input is divided, which channels share a factor.

    `tie` maps channels to factors ``[D]``; None where no neighbour can take the factor. `cost` is |W_:i|² ``[D]`` when
    it is not that of the readers' weights.
    """

    name: str
    site: SpikeSite
    readers: tuple[nn.Linear, ...]
    tie: Tensor | None
    divide: Callable[[Tensor], None] | None
    gates: tuple[Any, ...] = ()

    def cost(self) -> Tensor:
        """Σ_o W_oi² of all readers ``[D]``."""
        return torch.stack([r.weight.detach().float().pow(2).sum(0) for r in self.readers]).sum(0)


def ports(layer: Any) -> list[Port]:
    """The spiking projection sites of a block."""
    attention, feedforward = layer.attention, layer.feedforward
    found = [
        Port(
            "attn_in",
            attention.inner,
            (attention.q, attention.k, attention.v),
            torch.arange(attention.dims.d_model),
            lambda s: divide(layer.attention_norm, s),
            gates_of(attention.mixer),
        ),
        out_port(attention),
    ]
    gate, up = getattr(feedforward, "gate", None), getattr(feedforward, "up", None)
    if up is not None and hasattr(feedforward, "down"):
        width = up.in_features
        readers = (up,) if gate is None else (gate, up)
        found.append(
            Port("ffn_in", feedforward.inner, readers, torch.arange(width), lambda s: divide(layer.feedforward_norm, s))
        )
        linear = gate is not None  # what makes the hidden channels is linear in `up` only where it is gated
        norm = getattr(feedforward, "hidden_norm", None)
        tie = torch.arange(up.out_features) if linear or norm is not None else None
        maker = up if norm is None else norm
        found.append(Port("ffn_hidden", feedforward.hidden, (feedforward.down,), tie, lambda s: divide(maker, s)))
    return [p for p in found if p.site.neuron is not None]


def out_port(attention: Any) -> Port:
    """The site before the output projection: its channels come from v, or from the mixer's own norm."""
    dims, norm = attention.dims, getattr(attention.mixer, "norm", None)
    channel = torch.arange(dims.n_heads * dims.head_dim)
    tie: Tensor | None
    if attention.out.in_features != len(channel):
        tie, change = None, None  # several branches: v feeds them all, and they need not agree
    elif attention.out_norm is not None:
        tie, change = channel, lambda s: divide(attention.out_norm, s)
    elif isinstance(norm, nn.RMSNorm):
        tie, change = channel % dims.head_dim, lambda s: divide(norm, s)
    else:
        share = dims.n_heads // dims.n_kv_heads
        tie = channel // dims.head_dim // share * dims.head_dim + channel % dims.head_dim
        change = lambda s: divide(attention.v, s)  # noqa: E731
    return Port("attn_out", attention.outer, (attention.out,), tie, change)


def gates_of(mixer: Any) -> tuple[Any, ...]:
    """Mixers (of all branches) whose low-rank gates read the layer's input spikes."""
    branches = getattr(mixer, "branches", None)
    if branches is not None:
        return tuple(g for b in branches for g in gates_of(b))
    return (mixer,) if hasattr(mixer, "gate_down") else ()


@torch.no_grad()
def divide(part: Any, s: Tensor) -> None:
    """Make a norm or a projection give its output divided by `s`, channel by channel."""
    s = s.to(part.weight.dtype)
    part.weight.div_(s if part.weight.ndim == 1 else s[:, None])
    if getattr(part, "bias", None) is not None:
        part.bias.div_(s)
