"""What a fused decoding step is given, checked before a kernel takes addresses of it: plans, states, tokens."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.lowering import (
    DecoderPlan,
    LinearAttentionForm,
    MatrixForm,
    MixerForm,
    NormForm,
    SiteForm,
    SoftmaxAttentionForm,
    SpikeRule,
)
from fastsnn_core.state import StateError
from fastsnn_integer.forms import FourBitForm, TernaryForm, outputs, vocabulary
from fastsnn_modules.inputs import TokenError
from fastsnn_modules.operands import FULL, OperandError, OperandTypeError, check_choice, check_finite_numbers, shown

STATISTICS = ("mean_abs", "rms", "max_abs")


def check_plan(plan: Any) -> None:
    """Every matrix, norm and site of a plan fits the others; else `OperandError` names the part and both sizes."""
    if not isinstance(plan, DecoderPlan):
        raise OperandTypeError(f"decode_step: a plan is a DecoderPlan, got {type(plan).__name__}")
    wide, size = plan.width, plan.head_dim
    q, kv = plan.n_heads * size, plan.n_kv_heads * size
    if plan.n_kv_heads < 1 or plan.n_heads % plan.n_kv_heads or size < 1 or wide < 1:
        raise OperandError(
            f"decode_step: {plan.n_heads} query heads on {plan.n_kv_heads} key/value heads of {size} channels"
        )
    table: Any = plan.table
    if isinstance(table, FourBitForm):
        _four_bits("table", table, wide, vocabulary(plan))
    elif plan.table.ndim != 2 or plan.table.shape[1] != wide:
        raise OperandError(f"decode_step: table must be [vocabulary, {wide}], got {shown(plan.table)}")
    if plan.table_scale is not None and plan.table_scale.numel() != vocabulary(plan):
        raise OperandError(
            f"decode_step: table_scale must have {vocabulary(plan)} numbers, got {shown(plan.table_scale)}"
        )
    _check_norm("norm", plan.norm, wide)
    _site("site", plan.site, wide)
    _matrix("head", plan.head, wide, vocabulary(plan))
    for block in plan.blocks:
        a, f = block.attention, block.feedforward
        inside, hidden = q * len(a.mixers), outputs(f.up)
        _check_norm(f"{block.name}.attention_norm", block.attention_norm, wide)
        _check_norm(f"{block.name}.feedforward_norm", block.feedforward_norm, wide)
        _check_norm(f"{block.name}.out_norm", a.out_norm, inside)
        _check_norm(f"{block.name}.hidden_norm", f.hidden_norm, hidden)
        for name, site, inputs in (("inner", a.inner, wide), ("outer", a.outer, inside)):
            _site(f"{block.name}.attention.{name}", site, inputs)
        for name, site, inputs in (("inner", f.inner, wide), ("hidden", f.hidden, hidden)):
            _site(f"{block.name}.feedforward.{name}", site, inputs)
        for name, m, wide_in, wide_out in (
            ("q", a.q, wide, q), ("k", a.k, wide, kv), ("v", a.v, wide, kv), ("out", a.out, inside, wide),
            ("up", f.up, wide, hidden), ("gate", f.gate, wide, hidden), ("down", f.down, hidden, wide),
        ):  # fmt: skip
            if m is not None:
                _matrix(f"{block.name}.{name}", m, wide_in, wide_out)
        least = f.gate_threshold
        if least is not None and (f.gate is None or tuple(least.shape) != (hidden,)):
            why = f"must be [{hidden}], got {shown(least)}" if f.gate is not None else "needs a gate"
            raise OperandError(f"decode_step: {block.name}.feedforward.gate_threshold {why}")
        for name, norm in (("q_norm", a.q_norm), ("k_norm", a.k_norm)):
            _check_norm(f"{block.name}.{name}", norm, size)
        for form in a.mixers:
            _mixer(f"{block.name}.mixers", form, wide, kv, size)


def _check_norm(name: str, norm: NormForm | None, size: int) -> None:
    if norm is not None and tuple(norm.weight.shape) != (size,):
        raise OperandError(f"decode_step: {name} must be [{size}], got {shown(norm.weight)}")


def check_site(who: str, site: Any, size: int) -> None:
    """A site in front of `size` channels: a rule whose numbers are numbers, and a centre of that size."""
    if not isinstance(site, SiteForm) or not isinstance(site.rule, SpikeRule):
        raise OperandTypeError(f"{who} must be a SiteForm with a SpikeRule, got {type(site).__name__}")
    rule = site.rule
    check_choice(who, "statistic", rule.statistic, STATISTICS)
    names = ("gain", "divisor", "v_min", "v_max", "bound", "dead_zone")
    check_finite_numbers(who, **{name: getattr(rule, name) for name in names})
    if isinstance(rule.burst, bool) or not isinstance(rule.burst, int) or not 0 <= rule.burst < max(1, size):
        raise OperandError(f"{who}: burst must be a number of channels below {size}, got {rule.burst!r}")
    if rule.burst and rule.statistic != "max_abs":  # it is what the maximum leaves out: nothing defines it for a mean
        raise OperandError(f"{who}: burst = {rule.burst} goes with statistic max_abs, not {rule.statistic}")
    if rule.divisor <= 0 or rule.bound <= 0 or rule.v_min > rule.v_max:
        raise OperandError(f"{who}: a divisor and a bound above 0 and v_min <= v_max are wanted, got {rule}")
    c = site.centre
    if c is not None and (not isinstance(c, Tensor) or c.dtype not in FULL or tuple(c.shape) != (size,)):
        raise OperandError(f"{who}: the centre must be float [{size}], got {shown(c)}")


def _site(name: str, site: SiteForm, size: int) -> None:
    check_site(f"decode_step: {name}", site, size)


def _four_bits(name: str, m: FourBitForm, inputs: int, outputs: int) -> None:
    """Codes, scales and minimums of a 4-bit matrix fit each other and the sizes wanted."""
    codes, scales = (inputs, -(-outputs // 2)), (-(-inputs // max(1, m.group)), outputs)
    if m.group < 1 or m.weight.dtype != torch.uint8 or tuple(m.weight.shape) != codes:
        raise OperandError(f"decode_step: {name} must be uint8 {list(codes)} in groups, got {shown(m.weight)}")
    for what, t in (("scale", m.scale), ("minimum", m.minimum)):
        if (what == "scale" or t.numel()) and (tuple(t.shape) != scales or t.dtype != torch.float32):
            raise OperandError(f"decode_step: the {what} of {name} must be float32 {list(scales)}, got {shown(t)}")
    if m.bias is not None and m.bias.numel() != outputs:
        raise OperandError(f"decode_step: the bias of {name} must have {outputs} numbers, got {shown(m.bias)}")


def _matrix(name: str, m: MatrixForm, inputs: int, outputs: int) -> None:
    if isinstance(m, FourBitForm):
        _four_bits(name, m, inputs, outputs)
        return
    if isinstance(m, TernaryForm):
        codes = (inputs, -(-outputs // 4))
        if m.weight.dtype != torch.uint8 or tuple(m.weight.shape) != codes or m.scale.dtype != torch.float32:
            raise OperandError(f"decode_step: {name} must be uint8 {list(codes)}, scaled, got {shown(m.weight)}")
    elif m.weight.dtype != torch.int8 or tuple(m.weight.shape) != (outputs, inputs):
        raise OperandError(f"decode_step: {name} must be int8 [{outputs}, {inputs}], got {shown(m.weight)}")
    for what, t in (("scale", m.scale), ("bias", m.bias)):
        if t is not None and t.numel() != outputs:
            raise OperandError(f"decode_step: the {what} of {name} must have {outputs} numbers, got {shown(t)}")


def _mixer(name: str, form: MixerForm, wide: int, kv: int, size: int) -> None:
    if isinstance(form, SoftmaxAttentionForm):
        if form.window < 0 or (form.rotary and size % 2):
            raise OperandError(f"decode_step: {name}: window {form.window}, head width {size}")
        return
    if form.gate is not None:
        rank = outputs(form.gate.down)
        _matrix(f"{name}.gate.down", form.gate.down, wide, rank)
        _matrix(f"{name}.gate.up", form.gate.up, rank, kv)
    _check_norm(f"{name}.norm", form.norm, size)


def check_start(plan: DecoderPlan, position: Any, states: Any) -> None:
    """A stream begins from one pair of states per mixer of each block, in the shapes that its form says."""
    if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < 2**62:
        raise StateError(f"decode_step: position must be a number of tokens, got {position!r}")
    if not isinstance(states, tuple | list) or len(states) != len(plan.blocks):
        raise StateError(f"decode_step: states must be a list of {len(plan.blocks)}, one per block")
    for block, pairs in zip(plan.blocks, states):
        forms = block.attention.mixers
        if not isinstance(pairs, tuple | list) or len(pairs) != len(forms):
            raise StateError(f"decode_step: {block.name} has {len(forms)} mixers; its states must be as many pairs")
        for form, pair in zip(forms, pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise StateError(f"decode_step: {block.name}: a mixer's state is a pair, got {type(pair).__name__}")
            _pair(plan, block.name, form, *pair)


def _pair(plan: DecoderPlan, name: str, form: MixerForm, first: Any, second: Any) -> None:
    groups, size = plan.n_kv_heads, plan.head_dim
    for t in (first, second):
        if not isinstance(t, Tensor) or t.dtype != torch.float32 or t.device.type != "cpu":
            raise StateError(f"decode_step: {name}: a state is float32 on the CPU, got {shown(t)}")
    if isinstance(form, LinearAttentionForm):
        wanted: tuple[Any, Any] = ((groups, size, size), (groups, size))
    else:
        held = first.shape[0] if first.ndim else 0
        if form.window and held > form.window:
            raise StateError(f"decode_step: {name}: a window of {form.window} tokens holds no {held} keys")
        wanted = ((held, groups, size), (held, groups, size))
    if (tuple(first.shape), tuple(second.shape)) != wanted:
        raise StateError(
            f"decode_step: {name}: a state of {list(wanted[0])} and {list(wanted[1])} is wanted, got {shown(first)} "
            f"and {shown(second)}: it is of another model"
        )


def check_distinct_streams(stepper: Any, streams: Any) -> None:
    """Streams that step together are this stepper's, each there once."""
    for stream in streams:
        if getattr(stream, "stepper", None) is not stepper:
            raise StateError("decode_step: a stream of another model or stepper cannot step with these")
    if len({id(stream) for stream in streams}) < len(streams):
        raise StateError("decode_step: a stream steps once per step; it was given twice")


def check_token(plan: DecoderPlan, token: Any) -> None:
    """One token id of the plan's table."""
    try:
        found = -1 if isinstance(token, bool) else operator.index(token)
    except TypeError:
        raise TokenError(f"decode_step: a token is an int, got {type(token).__name__}") from None
    if not 0 <= found < vocabulary(plan):
        raise TokenError(f"token {token} is outside 0 … {vocabulary(plan) - 1}")
