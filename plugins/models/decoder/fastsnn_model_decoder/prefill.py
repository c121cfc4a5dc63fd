"""Reading many tokens in integer arithmetic with a handful of passes per layer: `fastsnn_integer.fused_row_ops`.

The modules of a block are its definition; here the same numbers go through kernels that do everything between two
products at once. A block without a fused form (`fastsnn_core.lowering`) runs as it is. The logits and the state are the
same bits either way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsnn_core import Heads
from fastsnn_core.lowering import (
    AttentionForm,
    BlockPlan,
    FeedforwardForm,
    MatrixForm,
    MixerForm,
    SoftmaxAttentionForm,
    Unsupported,
    lower,
)
from fastsnn_events.linear import COUNT_LINEAR
from fastsnn_integer import deterministic, fused_row_ops
from fastsnn_integer.decode_step import fingerprint
from fastsnn_integer.forms import outputs, packed
from fastsnn_integer.fused_row_ops import CountRows, Sums
from fastsnn_integer.known_operands import known_operands
from fastsnn_integer.reference import shut
from fastsnn_model_decoder.layers import Angles, AttentionState, BlockState, refuse_hooks

LEAST = 8  # tokens; fewer go through the modules


def prefill_applies(model: Any, tokens: Tensor) -> bool:
    """Is this a call for kernels?"""
    if not model.batch_invariant or tokens.numel() <= LEAST or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if fused_row_ops.RESIDUAL.pick(tokens.device.type)[0] == "naive":
        return False
    try:
        refuse_hooks(model)
    except Unsupported:
        return False
    return True


def by_row(site: Any) -> bool:
    """Do a site's spikes depend on their own token alone, and leave as counts?"""
    try:
        lower(site, "")
    except Unsupported:
        return False
    return site.coding is None or not site.coding.active


def prefill_blocks(
    model: Any, x: Tensor, state: Any, reset: Tensor | None, angles: Angles
) -> tuple[Tensor, list[BlockState]]:
    """All blocks; x ``[B,T,D]`` is used up."""
    shape, news = tuple(x.shape[:2]), []
    x, add = x.reshape(-1, x.shape[-1]).contiguous(), None
    flat = None if angles is None else tuple(a.flatten(0, 1).to(x.dtype).contiguous() for a in angles)
    plans, known = block_plans(model)
    with known_operands(known):
        for i, (block, plan) in enumerate(zip(model.layers, plans, strict=True)):
            old = None if state is None else state.layers[i]
            if plan is None:
                y, new = block(with_pending(x, add).view(*shape, -1), old, reset, angles)
                x, add = y.reshape(x.shape).contiguous(), None
            else:
                add, new = run_block(block, plan, shape, x, add, old, reset, angles, flat)
            news.append(new)
    return with_pending(x, add).view(*shape, -1), news


def block_plans(model: Any) -> tuple[list[BlockPlan | None], bool]:
    """Forms of all blocks (`usable_plan`), and whether they are those of the fused step, which have been checked."""
    if model.fused is not None and model.fused[0] is not None:
        try:
            plan = lower(model, "")
        except Unsupported:
            plan = None
        if plan is not None and (fingerprint(plan), torch.get_num_threads()) == model.fused[0]:
            return [usable_plan(block, found) for block, found in zip(model.layers, plan.blocks, strict=True)], True
    return [lowered_block(block) for block in model.layers], False


def lowered_block(block: Any) -> BlockPlan | None:
    """A block's forms, `mixers` empty where its attention has none; None where the block runs as it is."""
    try:
        return usable_plan(block, lower(block, "", whole=False))
    except Unsupported:
        return None


def usable_plan(block: Any, plan: BlockPlan) -> BlockPlan | None:
    """`plan`, if kernels give what the block does; None where it wants more than counts."""
    a = plan.attention
    if a.inner.neuron is None:
        return None  # an attention may want the numbers that no neuron counted
    coded = (block.attention.inner, block.attention.outer, *(m for m in block.feedforward.modules()))
    if any(getattr(site, "coding", None) is not None and site.coding.active for site in coded):
        return None
    return plan


def rotates_only(forms: tuple[MixerForm, ...]) -> bool:
    """Do all mixers want nothing but rotated queries and keys? Then the rotation is done with the rest of the row."""
    return bool(forms) and all(isinstance(form, SoftmaxAttentionForm) and form.rotary for form in forms)


def run_block(
    block: Any, plan: BlockPlan, shape: tuple[int, ...], x: Tensor, add: Any, old: Any, reset: Tensor | None,
    angles: Angles, flat: Any,
) -> tuple[Any, BlockState]:  # fmt: skip
    """One block: `add` onto `x` ``[B·T, D]`` first; what is still to be added, and the state."""
    before = None if old is None or old.attention is None else old.attention.mixer
    mixer = block.attention.mixer
    add, mixed = run_rows(block, plan, shape, x, add, angles, flat, lambda heads: mixer(heads, before, reset))
    return add, block_state(plan, old, mixed)


def run_rows(
    block: Any, plan: BlockPlan, shape: tuple[int, ...], x: Tensor, add: Any, angles: Angles, flat: Any,
    mix: Callable[[Heads], tuple[Tensor, Any]],
) -> tuple[Any, Any]:  # fmt: skip
    """A block's rows; `mix` goes over heads ``[B,T,·,K]``: what is still to be added, and the state it gave."""
    a, f = plan.attention, plan.feedforward
    counts = fused_row_ops.residual(x, add, plan.attention_norm, a.inner)
    mixed, state = mix(heads_of(block.attention, a, counts, shape, angles, flat))
    counts = fused_row_ops.residual(mixed.reshape(len(x), -1), None, a.out_norm, a.outer)
    add = projection_output(counts, a.out, shape)
    counts = fused_row_ops.residual(x, add, plan.feedforward_norm, f.inner)
    return projection_output(hidden_counts(f, counts, shape), f.down, shape), state


def block_state(plan: BlockPlan, old: Any, mixer: Any) -> BlockState:
    """The state of a block whose sites have none of their own: the mixer's, and what was there before."""
    before = (None if old is None else old.attention) or AttentionState(*[None] * 6)
    state = AttentionState(before.inner, before.query, before.key, before.value, mixer, before.outer)
    return BlockState(state, plan.feedforward.state if old is None else old.feedforward)


def heads_of(
    layer: Any, form: AttentionForm, counts: CountRows, shape: tuple[int, ...], angles: Angles, flat: Any
) -> Heads:
    """Queries, keys and values ``[B,T,·,K]`` of the counts, rotated where the mixer wants nothing else."""
    width, spikes = layer.dims.head_dim, counts.spikes(shape)
    matrices = (form.q, form.k, form.v)
    summed = counts.narrow and not any(packed(m) for m in matrices)
    turned = summed and flat is not None and rotates_only(form.mixers)
    if summed:
        sums = [project_counts(counts, m) for m in matrices]
        norms = (form.q_norm, form.k_norm)
        q, k, v = fused_row_ops.heads(sums[0], sums[1], sums[2], width, norms, flat if turned else None)
    else:
        q, k, v = (wide(spikes, m).unflatten(-1, (-1, width)) for m in matrices)
        q, k = (
            y if norm is None else deterministic.rms_norm(y, norm.weight, norm.eps)
            for y, norm in ((q, form.q_norm), (k, form.k_norm))
        )
    q, k, v = (y.view(*shape, -1, width) for y in (q, k, v))
    return Heads(q, k, v, spikes, *(angles if angles and layer.rotary and not turned else (None, None)))


def hidden_counts(form: FeedforwardForm, counts: CountRows, shape: tuple[int, ...]) -> CountRows:
    """Counts of the hidden channels."""
    if counts.narrow and form.hidden_norm is None and not any(packed(m) for m in (form.up, form.gate)):
        gate = None if form.gate is None else project_counts(counts, form.gate)
        second = project_counts(counts, form.up)
        return fused_row_ops.hidden(second, gate, form.activation, form.hidden, form.gate_threshold, form.up_relu)
    spikes = counts.spikes(shape)
    up = wide(spikes, form.up)
    first = deterministic.unary(up if form.gate is None else wide(spikes, form.gate), form.activation)
    hidden = first if form.gate is None else shut(first, form.gate_threshold) * second_factor(form, up)
    return fused_row_ops.residual(hidden.reshape(len(counts.counts), -1), None, form.hidden_norm, form.hidden)


def second_factor(form: FeedforwardForm, up: Tensor) -> Tensor:
    """What a gate is multiplied with."""
    return deterministic.unary(up, "relu") if form.up_relu else up


def project_counts(counts: CountRows, matrix: MatrixForm) -> Sums:
    """The product of counts of 8 bits; its layer says which way it went."""
    out = fused_row_ops.project(counts, matrix)
    layer: Any = matrix.layer
    layer.path = COUNT_LINEAR.path
    return out


def wide(spikes: Any, matrix: MatrixForm) -> Tensor:
    """The projection of counts that do not fit 8 bits, or by weights below 8 bits: by the layer itself."""
    layer: Any = matrix.layer
    return layer(spikes)


def projection_output(counts: CountRows, matrix: MatrixForm, shape: tuple[int, ...]) -> Sums | Tensor:
    """What a projection adds to the residual stream."""
    if counts.narrow and not packed(matrix):
        return project_counts(counts, matrix)
    return wide(counts.spikes(shape), matrix).reshape(-1, outputs(matrix))


def with_pending(x: Tensor, add: Sums | Tensor | None) -> Tensor:
    """The residual stream with nothing left to add."""
    return x if add is None else x + (add.dequantised() if isinstance(add, Sums) else add)
