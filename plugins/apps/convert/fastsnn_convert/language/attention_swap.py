"""Other attentions in a trained decoder, the SpikingBrain way: all projections inherited, only gates and norms new.

Which layer becomes what is a list that is cycled over the layers (``["gla", "sliding_window"]``, or a name such as
``hybrid_alt``), or is chosen by measurement: of as many layers of each kind as the cycle would give, the first kind
goes where it alone costs the least (KL of the next token against the dense model).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.language.rebuild import rebuild
from fastsnn_convert.language.reference_eval import HeldOutReference
from fastsnn_core import Attention
from fastsnn_core.errors import FastSNNError
from fastsnn_model_decoder.attention_list import attention_list

PLACES = ("cycle", "sensitivity")


def inheritable(attention: Any, window: int | None = None) -> tuple[Attention, ...]:
    """The attentions that `fastsnn_model_decoder.attention_list` makes of a name, component, table or list of these.

    `ConversionError`: what it refuses, and one that is wider than the output projection which it would inherit.
    """
    try:
        found = attention_list(attention, window)
    except FastSNNError as error:
        raise ConversionError(str(error)) from None
    if wide := next((a.name for a in found if a.expansion != 1), None):
        raise ConversionError(f"attention {wide!r} is wider than the source's output projection: it cannot inherit it")
    return found


def layers_of(spec: Any) -> tuple[Attention, ...]:
    """The attention of every layer."""
    return tuple(spec.attention[i % len(spec.attention)] for i in range(spec.n_layers))


def replace(dense: Any, kinds: Sequence[Attention], tokens: Tensor) -> nn.Module:
    """`dense` with the attention of each layer given by `kinds` (cycled); new norms are fitted on ``tokens [N,T]``.

    A new norm's weight makes the mixer's output as near to the old one's as one factor per channel can (least squares);
    gates start as in a fresh model. Tensors are shared with `dense`, so use one of the two.
    """
    wanted = tuple(kinds[i % len(kinds)] for i in range(dense.spec.n_layers))
    old = layers_of(dense.spec)
    model: Any = rebuild(dense, attrs.evolve(dense.spec, attention=shortest(wanted)))
    changed = [i for i in range(len(old)) if wanted[i] != old[i]]
    if not changed:
        return model
    outputs: dict[int, Tensor] = {}
    handles = [
        dense.layers[i].attention.mixer.register_forward_hook(
            lambda _m, args, out, i=i: outputs.__setitem__(
                i, fit_norm(model.layers[i].attention.mixer, args[0], out[0])
            )
        )
        for i in changed
    ]
    with torch.no_grad():
        dense(tokens)
    for handle in handles:
        handle.remove()
    return model


def fit_norm(mixer: Any, heads: Any, wanted: Tensor) -> Tensor:
    """Set a mixer's norm so that its output is near ``wanted [B,T,H,K]``; gives the factors ``[K]`` (or ones)."""
    norm = getattr(mixer, "norm", None)
    if not isinstance(norm, nn.RMSNorm):
        return torch.ones(wanted.shape[-1])
    norm.weight.fill_(1.0)
    out = mixer(heads, None, None)[0].float()
    factor = (out * wanted.float()).sum((0, 1, 2)) / out.pow(2).sum((0, 1, 2)).clamp_min(1e-12)
    norm.weight.copy_(factor.abs().clamp_min(0.05 * float(wanted.float().pow(2).mean().sqrt())))
    return factor


def shortest(kinds: tuple[Attention, ...]) -> tuple[Attention, ...]:
    """The shortest list whose cycle gives `kinds`."""
    for n in range(1, len(kinds)):
        if all(kinds[i] == kinds[i % n] for i in range(len(kinds))):
            return kinds[:n]
    return kinds


def sensitivity(dense: Any, kind: Attention, tokens: Tensor, held: HeldOutReference) -> list[float]:
    """KL of the next token, per layer, when that layer alone has `kind` (fitted, not healed)."""
    costs, old = [], layers_of(dense.spec)
    for i in range(dense.spec.n_layers):
        alone = tuple(kind if j == i else a for j, a in enumerate(old))
        costs.append(held.compare(replace(dense, alone, tokens))[0])
    return costs


def place_attention(
    dense: Any, kinds: Sequence[Attention], place: str, tokens: Tensor, held: HeldOutReference
) -> tuple[Any, list[float]]:
    """The attention of every layer, and the measured costs behind it (none for a plain cycle)."""
    n = dense.spec.n_layers
    if place not in PLACES:
        raise ConversionError(f"no place {place!r}; attentions are placed by {' or '.join(PLACES)}")
    if place == "cycle" or len(set(kinds)) == 1:
        return tuple(kinds[i % len(kinds)] for i in range(n)), []
    first = next(a for a in kinds)
    others = [a for a in kinds if a != first]
    count = n * sum(a == first for a in kinds) // len(kinds)
    costs = sensitivity(dense, first, tokens, held)
    chosen = sorted(range(n), key=lambda i: costs[i])[:count]
    left = [i for i in range(n) if i not in chosen]
    table = dict.fromkeys(chosen, first) | {i: others[j % len(others)] for j, i in enumerate(left)}
    return tuple(table[i] for i in range(n)), costs
