"""Reading many tokens in integer arithmetic with a handful of passes per layer: `fastsnn_integer.fused_row_ops`.

The modules of a block are its definition; here the same numbers go through kernels that do everything between two
products at once. A block that cannot be taken apart like this (other neurons, scales per group, spikes on q, k or v)
runs as it is. The logits and the state are the same bits either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsnn_core import Heads
from fastsnn_core.lowering import Layer, Matrix, Unsupported
from fastsnn_core.ops import paths
from fastsnn_integer import fused_row_ops
from fastsnn_integer.fused_row_ops import Counts, Sums
from fastsnn_model_decoder import fast
from fastsnn_model_decoder.layers import Angles, AttentionState, BlockState

LEAST = 32  # tokens; fewer go through the modules


def ready(model: Any, tokens: Tensor) -> bool:
    """Is this a call for kernels?"""
    if not model.exact or tokens.numel() <= LEAST or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if fused_row_ops.RESIDUAL.pick(tokens.device.type)[0] == "naive":
        return False
    try:
        fast.watched(model)
    except Unsupported:
        return False
    return True


def stateless(site: Any) -> bool:
    """Do a site's spikes depend on their own token alone?"""
    try:
        fast.spikes(site, "")
    except Unsupported:
        return False
    return site.coding is None or not site.coding.active


def read(model: Any, x: Tensor, state: Any, reset: Tensor | None, angles: Angles) -> tuple[Tensor, list[BlockState]]:
    """All blocks; x ``[B,T,D]`` is used up."""
    shape, news = tuple(x.shape[:2]), []
    x, add = x.reshape(-1, x.shape[-1]).contiguous(), None
    turn = None if angles is None else tuple(a.flatten(0, 1).to(x.dtype).contiguous() for a in angles)
    for i, block in enumerate(model.layers):
        old = None if state is None else state.layers[i]
        part = described(block)
        if part is None:
            y, new = block(settle(x, add).view(*shape, -1), old, reset, angles)
            x, add = y.reshape(x.shape).contiguous(), None
        else:
            add, new = run(
                block, part, shape, x, add, old, reset, angles, turn if fast.turned(block.attention.mixer) else None
            )
        news.append(new)
    return settle(x, add).view(*shape, -1), news


def described(block: Any) -> Layer | None:
    """A block's neurons and matrices; None where it runs as it is."""
    a, f = block.attention, block.feedforward
    if a.inner.neuron is None:
        return None  # an attention may want the numbers that no neuron counted
    if not all(stateless(site) for site in (a.inner, a.outer, f.inner, f.hidden)):
        return None
    try:
        return fast.body(block, "")
    except Unsupported:
        return None


def run(
    block: Any, part: Layer, shape: tuple[int, ...], x: Tensor, add: Any, old: Any, reset: Tensor | None,
    angles: Angles, turn: Any,
) -> tuple[Any, BlockState]:  # fmt: skip
    """One block: `add` onto `x` ``[B·T, D]`` first; what is still to be added, and the state."""
    a, f, width = block.attention, block.feedforward, block.attention.dims.head_dim
    before = (None if old is None else old.attention) or AttentionState(*[None] * 6)
    counts = fused_row_ops.residual(x, add, part.norm, block.attention_norm.eps, part.spikes)
    spikes = counts.spikes(shape)
    norms = None if part.q_norm is None or part.k_norm is None else (part.q_norm, part.k_norm)
    if counts.narrow:
        q, k, v = (project(layer, counts, m) for layer, m in ((a.q, part.q), (a.k, part.k), (a.v, part.v)))
        q, k, v = fused_row_ops.heads(q, k, v, width, norms, block.attention_norm.eps, turn)
    else:
        q, k, v = (layer(spikes).unflatten(-1, (-1, width)) for layer in (a.q, a.k, a.v))
        if norms is not None:
            q, k = a.q_norm(q), a.k_norm(k)
    q, k, v = (y.view(*shape, -1, width) for y in (q, k, v))
    turned = counts.narrow and turn is not None
    heads = Heads(q, k, v, spikes, *(angles if angles and a.rotary and not turned else (None, None)))
    mixed, mixer = a.mixer(heads, before.mixer, reset)
    counts = fused_row_ops.residual(mixed.reshape(len(x), -1), None, None, 0.0, part.mixed)
    add = numbers(a.out, counts, part.out, shape)
    counts = fused_row_ops.residual(x, add, part.norm2, block.feedforward_norm.eps, part.spikes2)
    if counts.narrow:
        up = project(f.up, counts, part.up)
        gate = None if part.gate is None else project(f.gate, counts, part.gate)
        counts = fused_row_ops.hidden(up, gate, part.activation, part.hidden)
    else:
        spikes = counts.spikes(shape)
        hidden = f.act(f.up(spikes)) if f.gate is None else f.act(f.gate(spikes)) * f.up(spikes)
        counts = fused_row_ops.residual(hidden.reshape(len(x), -1), None, None, 0.0, part.hidden)
    state = AttentionState(before.inner, before.query, before.key, before.value, mixer, before.outer)
    return numbers(f.down, counts, part.down, shape), BlockState(
        state, (None, None) if old is None else old.feedforward
    )


def project(layer: Any, counts: Counts, matrix: Matrix) -> Sums:
    """The product, and which way it went."""
    out = fused_row_ops.project(counts, matrix)
    layer.path = paths().get("count_linear", "")
    return out


def numbers(layer: Any, counts: Counts, matrix: Matrix, shape: tuple[int, ...]) -> Sums | Tensor:
    """What a projection adds to the residual stream."""
    return (
        project(layer, counts, matrix) if counts.narrow else layer(counts.spikes(shape)).reshape(-1, len(matrix.scale))
    )


def settle(x: Tensor, add: Sums | Tensor | None) -> Tensor:
    """The residual stream with nothing left to add."""
    return x if add is None else x + (add.numbers() if isinstance(add, Sums) else add)
