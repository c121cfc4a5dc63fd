"""Rules: attention is taken apart, so that its projections spike; softmax stays on numbers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_conversion.context import Context, ConversionError, Replacement
from fastsnn_conversion.spike_layers import AdditiveMask
from fastsnn_core import Rule, hookimpl

__version__ = "0.1.0"

SOFTMAX = "softmax attention works on numbers; the projections around it spike"


def constant_mask(mask: Tensor, heads: int) -> Tensor:
    """An attention mask that is known when the module is traced, as scores to be added, ``[L, S]`` or ``[N, H, L, S]``:
    a boolean one of `nn.MultiheadAttention` says True where attention is *not* allowed."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(mask, float("-inf"))
    mask = mask.float() if mask.dtype in (torch.float16, torch.bfloat16) else mask
    return mask.unflatten(0, (-1, heads)) if mask.ndim == 3 else mask


class ProjectedAttention(nn.Module):
    """`nn.MultiheadAttention` with its projections as layers of their own: q, k, v, out."""

    def __init__(self, old: nn.MultiheadAttention) -> None:
        super().__init__()
        if old.bias_k is not None or old.add_zero_attn:
            raise ConversionError(
                "nn.MultiheadAttention with add_bias_kv or add_zero_attn is not covered; leave them out"
            )
        self.heads, self.batch_first = old.num_heads, old.batch_first
        if old.in_proj_weight is not None:
            weights: Any = old.in_proj_weight.detach().chunk(3)
        else:
            weights = (old.q_proj_weight, old.k_proj_weight, old.v_proj_weight)
        biases: Any = (None, None, None) if old.in_proj_bias is None else old.in_proj_bias.detach().chunk(3)
        self.q, self.k, self.v = (linear(w, b) for w, b in zip(weights, biases))
        self.out = linear(old.out_proj.weight, old.out_proj.bias)
        self.mask, self.padding = AdditiveMask(self.heads), AdditiveMask(self.heads, keys=True)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention` on batches, without dropout of the attention weights."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(query), self.k(key), self.v(value))
        )
        mask: Any = None
        for module, given in ((self.mask, attn_mask), (self.padding, key_padding_mask)):
            if given is None:
                continue
            known = isinstance(given, Tensor) and module is self.mask
            more = constant_mask(given, self.heads) if known else module(given, q)
            mask = more if mask is None else mask + more
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal and mask is None)
        y = self.out(mixed.transpose(1, 2).flatten(2))
        weights = None
        if need_weights:  # traced, and dropped again where nobody reads it
            scores = torch.matmul(q, k.transpose(-1, -2)) * (self.q.out_features // self.heads) ** -0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = weights.mean(1) if average_attn_weights else weights
        return (y if self.batch_first else y.transpose(0, 1)), weights


class EncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer` without its fast path."""

    def __init__(self, old: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.self_attn, self.linear1, self.linear2 = old.self_attn, old.linear1, old.linear2
        self.norm1, self.norm2, self.norm_first = old.norm1, old.norm2, old.norm_first
        self.dropout, self.dropout1, self.dropout2 = old.dropout, old.dropout1, old.dropout2
        self.activation = old.activation
        attention: Any = old.self_attn
        self.turned = isinstance(attention, nn.MultiheadAttention) and not attention.batch_first
        if self.turned:  # sites need the batch first, so the whole layer works that way
            self.self_attn = copy.copy(attention)
            self.self_attn.batch_first = True

    def attend(self, x: Tensor, mask: Tensor | None, padding: Tensor | None, causal: bool) -> Tensor:
        """Self-attention and its dropout."""
        y = self.self_attn(x, x, x, key_padding_mask=padding, need_weights=False, attn_mask=mask, is_causal=causal)
        return self.dropout1(y[0])

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward part."""
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As the original."""
        if not self.turned:
            return self.batch_first(src, src_mask, src_key_padding_mask, is_causal)
        return self.batch_first(src.transpose(0, 1), src_mask, src_key_padding_mask, is_causal).transpose(0, 1)

    def batch_first(
        self, src: Tensor, src_mask: Tensor | None, src_key_padding_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """The layer over [N, L, D]."""
        if self.norm_first:
            x = src + self.attend(self.norm1(src), src_mask, src_key_padding_mask, is_causal)
            return x + self.feed(self.norm2(x))
        x = self.norm1(src + self.attend(src, src_mask, src_key_padding_mask, is_causal))
        return self.norm2(x + self.feed(x))


class Encoder(nn.Module):
    """`nn.TransformerEncoder` without nested tensors."""

    def __init__(self, old: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = old.layers, old.norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As the original."""
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
        return src if self.norm is None else self.norm(src)


TWINS: dict[type[nn.Module], Any] = {
    nn.MultiheadAttention: ProjectedAttention,
    nn.TransformerEncoderLayer: EncoderLayer,
    nn.TransformerEncoder: Encoder,
}


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer over given weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


@frozen
class AttentionRule(Rule):
    """softmax(q kᵀ / √K) v with q = W_q s, k = W_k s, v = W_v s of spikes s, and spikes again in front of W_o.

    `nn.MultiheadAttention`, `nn.TransformerEncoderLayer` and `nn.TransformerEncoder` are replaced by modules of equal
    value whose projections are layers of their own (converted by the rule for linear layers); softmax stays on numbers.
    x [N, L, D] -> y [N, L, D]. Dropout of attention weights is left out. Errors: add_bias_kv, add_zero_attn.
    """

    name = "attention"
    covers = (*(f"torch.nn.{cls.__name__}" for cls in TWINS), "torch.nn.Softmax", "torch.nn.LogSoftmax")

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return type(module) in (nn.Softmax, nn.LogSoftmax, AdditiveMask)

    def convert(self, module: Any, context: Context) -> Replacement:
        """Kept: probabilities are numbers."""
        return context.keep(module, "a mask" if type(module) is AdditiveMask else "probabilities are numbers")

    def lower(self, module: Any) -> nn.Module | None:
        """A twin that can be traced, whose projections are modules."""
        twin = TWINS.get(type(module))
        return None if twin is None else twin(module)

    def lift(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """A call that stays a call, and why."""
        if function is F.scaled_dot_product_attention:
            return SOFTMAX
        return "probabilities are numbers" if function in (F.softmax, torch.softmax, "softmax") else None


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [AttentionRule]
