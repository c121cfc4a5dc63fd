"""A decoder on its principal axes: rotations that its own weights take over, so that they cost nothing at run time.

    h' = h R,    norm(h) R = norm(h R),    W (g ∘ norm(h)) = (W diag(g) R) norm(h')        R ``[D,D]``, R Rᵀ = 1

The residual stream is turned by one R for all layers: gains of norms go into the projections behind them, whatever
reads the stream takes R, whatever writes to it gives h R. The values of every key/value head are turned by a
``[K,K]`` of their own, between the value and the output projection, since softmax attention mixes values with the same
numbers for all their channels. Axes are those of E[x xᵀ] of what the sites see, so that few channels carry much and
many fall below a threshold. Hidden channels of a feed-forward layer stay: they come from a product.

Liu et al. 2025 (LaRoSA, arXiv 2507.01299) have a rotation for each layer, which puts a product ``[D,D]`` into the
residual stream between two layers; Ashkboos et al. 2024 (arXiv 2404.00456) one for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_convert.language.ports import gates_of
from fastsnn_convert.language.rebuild import bypass_neurons
from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import SoftmaxAttentionForm, Unsupported, lower


@attrs.frozen(eq=False)
class Moments:
    """E[x xᵀ] of a layer: of what its two norms give ``[D,D]`` each, and of the mixed values of every head
    ``[G,K,K]``."""

    attention: Tensor
    feedforward: Tensor
    values: Tensor


def rotated(model: Any, tokens: Tensor) -> Any:
    """`model`, changed in place, on the principal axes of its residual stream and values on ``tokens [N,T]``.

    Its function is the same but for rounding. A tied head becomes one of its own: it takes the last norm's gain, which
    the embedding does not. As many weights are read for a token as before, the bundle is larger by the embedding.

    Errors: `FastSNNError` for a model with other norms than RMSNorm, ternary weights, or spikes on values.
    """
    fold_gains(model)
    seen = moments(model, tokens)
    turn_stream(model, axes(torch.stack([m.attention + m.feedforward for m in seen]).sum(0)))
    turn_values(model, seen)
    return model


def check_turnable(model: Any) -> None:
    """Only decoders whose residual stream has no axes of its own."""
    if model.spec.norm != "rms":
        raise FastSNNError(f"a rotation needs RMSNorm, which has no axes of its own, not {model.spec.norm!r}")
    if model.spec.weights != "float" or model.spec.quant is not None:
        raise FastSNNError("a rotation changes all weights; this model's are rounded")
    if model.head_site.centre is not None or model.embed_site.centre is not None:
        raise FastSNNError("a rotation of a model whose embedding or head is centred is not supported")
    for i, layer in enumerate(model.layers):
        if not hasattr(layer.feedforward, "up") or not hasattr(layer.feedforward, "down"):
            raise FastSNNError(f"layers.{i}: a feed-forward layer without up and down projections cannot be turned")


@torch.no_grad()
def fold_gains(model: Any) -> None:
    """Put the gains of all norms in front of projections and head into these; the head gets weights of its own."""
    check_turnable(model)
    for layer in model.layers:
        for norm, site, readers in norm_readers(layer):
            gain = norm.weight.clone()
            for reader in readers:
                reader.weight.mul_(gain)
            if site.centre is not None:
                site.centre.div_(torch.where(gain == 0, torch.ones_like(gain), gain))
            norm.weight.fill_(1.0)
    if model.head is None:
        rows, bias = model.embed.weight, model.tied_bias
        head = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None, device=rows.device, dtype=rows.dtype)
        head.weight.copy_(rows)
        if bias is not None:
            head.bias.copy_(bias)
        model.head = head.requires_grad_(False)
        model.register_parameter("tied_bias", None)
        model.spec = attrs.evolve(model.spec, tied=False)
    model.head.weight.mul_(model.norm.weight)
    model.norm.weight.fill_(1.0)


def norm_readers(layer: Any) -> Iterator[tuple[Any, Any, list[Any]]]:
    """The norms of a block, the site behind each, and what reads it."""
    a, f = layer.attention, layer.feedforward
    gates = [g.gate_down for g in gates_of(a.mixer)]
    yield layer.attention_norm, a.inner, [p for p in (a.q, a.k, a.v, *gates) if p is not None]
    yield layer.feedforward_norm, f.inner, [p for p in (getattr(f, "gate", None), f.up) if p is not None]


@torch.no_grad()
def moments(model: Any, tokens: Tensor) -> list[Moments]:
    """Of every layer of a model without spikes, on ``tokens [N,T]``."""
    sums: dict[tuple[int, str], Tensor] = {}

    def watch(site: Any, key: tuple[int, str], heads: int, width: int) -> Any:
        def hook(_m: Any, args: tuple[Any, ...]) -> None:
            x = args[0].flatten(0, 1).float().unflatten(-1, (heads, -1, width))  # [n,G,share,K]
            sums[key] = sums.get(key, 0.0) + torch.einsum("ngsi,ngsj->gij", x, x)

        return site.register_forward_pre_hook(hook)

    dims, handles = model.spec.dims, []
    for i, layer in enumerate(model.layers):
        handles += [watch(site, (i, str(n)), 1, dims.d_model) for n, (_, site, _) in enumerate(norm_readers(layer))]
        if values_turn(layer, dims):
            handles.append(watch(layer.attention.outer, (i, "v"), dims.n_kv_heads, dims.head_dim))
    try:
        with bypass_neurons(model):
            for piece in tokens.split(1):
                model(piece, last=True)
    finally:
        for handle in handles:
            handle.remove()
    none = torch.empty(0)
    return [Moments(sums[i, "0"][0], sums[i, "1"][0], sums.get((i, "v"), none)) for i in range(len(model.layers))]


def axes(moment: Tensor) -> Tensor:
    """Principal axes of moments ``[…,D,D]``, as columns, those that carry least first."""
    return torch.linalg.eigh(moment.double()).eigenvectors.to(moment.dtype)


@torch.no_grad()
def turn_stream(model: Any, turn: Tensor) -> None:
    """The residual stream on axes ``turn [D,D]``, one for all layers; gains are folded already."""
    model.embed.weight.copy_(model.embed.weight @ turn)
    model.head.weight.copy_(model.head.weight @ turn)
    for layer in model.layers:
        for _, site, readers in norm_readers(layer):
            for reader in readers:
                reader.weight.copy_(reader.weight @ turn)
            if site.centre is not None:
                site.centre.copy_(site.centre @ turn)
        for writer in (layer.attention.out, layer.feedforward.down):
            writer.weight.copy_(turn.T @ writer.weight)
            if writer.bias is not None:
                writer.bias.copy_(writer.bias @ turn)


def values_turn(layer: Any, dims: Any) -> bool:
    """May values be turned? Where they are only averaged on their way to the output projection."""
    a = layer.attention
    plain = a.v_site.neuron is None and a.v_site.centre is None and a.out_norm is None
    if not plain or a.out.in_features != dims.n_heads * dims.head_dim:
        return False
    try:
        return all(isinstance(form, SoftmaxAttentionForm) for form in lower(a.mixer, "mixer"))
    except Unsupported:
        return False


@torch.no_grad()
def turn_values(model: Any, seen: list[Moments]) -> None:
    """Values of every key/value head on the axes of what its query heads mix, where nothing but that is done."""
    dims = model.spec.dims
    for layer, moment in zip(model.layers, seen):
        if not moment.values.numel():
            continue
        a, turn = layer.attention, axes(moment.values)  # [G,K,K]
        v = a.v.weight.unflatten(0, (dims.n_kv_heads, -1))
        a.v.weight.copy_(torch.einsum("gki,gkj->gji", v, turn).flatten(0, 1))
        if a.v.bias is not None:
            a.v.bias.copy_(torch.einsum("gk,gkj->gj", a.v.bias.unflatten(0, (dims.n_kv_heads, -1)), turn).flatten())
        out = a.out.weight.unflatten(1, (dims.n_kv_heads, -1, dims.head_dim))
        a.out.weight.copy_(torch.einsum("ogsk,gkj->ogsj", out, turn).flatten(1))
        if a.outer.centre is not None:
            centre = a.outer.centre.unflatten(0, (dims.n_kv_heads, -1, dims.head_dim))
            a.outer.centre.copy_(torch.einsum("gsk,gkj->gsj", centre, turn).flatten())
