"""Forms evaluated in plain torch: what `fastsnn_core.lowering` means, and the naive twin of ``decode_step``.

Slow and short. Kernels are compared with this and with the modules themselves, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import (
    BlockPlan,
    DecoderPlan,
    FeedforwardForm,
    LinearAttentionForm,
    MatrixForm,
    MixerForm,
    NormForm,
    SiteForm,
    SoftmaxAttentionForm,
    SpikeRule,
    Unsupported,
)
from fastsnn_core.ops.dispatch import Operator
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_integer import deterministic, four_bits, ternary
from fastsnn_integer.decode_step import States
from fastsnn_integer.forms import FourBitForm, TernaryForm
from fastsnn_integer.plan_check import check_distinct_streams, check_plan, check_start, check_token
from fastsnn_integer.quantization import quantize_per_token, quantized_linear
from fastsnn_modules.operands import imported_later

STATISTICS = ("mean_abs", "max_abs", "rms")


def statistic(x: Tensor, rule: SpikeRule) -> Tensor:
    """s of rows ``[N, D]``, ``[N, 1]``."""
    if rule.statistic == "mean_abs":
        return deterministic.row_sum(x, "abs") / x.shape[-1]
    if rule.statistic == "rms":
        return deterministic.root(deterministic.row_sum(x, "square") / x.shape[-1])
    if rule.statistic == "max_abs":
        size = x.abs()
        return size.topk(rule.burst + 1, dim=-1).values[:, -1:] if rule.burst else size.amax(-1, keepdim=True)
    raise Unsupported(f"the statistic {rule.statistic!r} is none of {', '.join(STATISTICS)}")


def spike_counts(rule: SpikeRule, x: Tensor) -> tuple[Tensor, Tensor]:
    """``(c [N, D], V [N, 1])`` of rows ``[N, D]``: `SpikeRule` in its own order of operations."""
    s = statistic(x, rule)
    v = (s * rule.gain / rule.divisor).clamp(rule.v_min, rule.v_max)
    v = torch.where(v == 0, 1.0, v)
    u = x / v
    held = u.clamp(-rule.bound, rule.bound)
    if rule.burst:
        held = torch.where(x.abs() <= s, held, u)
    return torch.where(u.abs() < rule.dead_zone, 0.0, held.round()), v


def fire(x: Tensor, site: SiteForm) -> tuple[Tensor, Tensor]:
    """``(c [N, D], V [N, 1])`` of rows: by the neuron itself, which defines the rule; by `levels` without one."""
    x = x if site.centre is None else x - site.centre
    if site.neuron is None:
        return (
            quantize_per_token(x)
            if site.rule.statistic == "max_abs" and site.rule.v_min == 0
            else spike_counts(site.rule, x)
        )
    spikes, _ = site.neuron(x[None])
    return spikes.counts[0], spikes.scale[0]


def projected(spikes: tuple[Tensor, Tensor], matrix: MatrixForm) -> Tensor:
    """A projection of counts ``[N, in]``."""
    if isinstance(matrix, FourBitForm):
        m, (counts, v) = matrix, spikes
        y = four_bits.project_naive(counts, m.weight, m.scale, m.minimum, m.group) * v.to(torch.float32)
        return y if m.bias is None else y + m.bias
    if isinstance(matrix, TernaryForm):
        y = ternary.project_ternary_naive(spikes[0], matrix.weight, matrix.scale) * spikes[1].to(torch.float32)
        return y if matrix.bias is None else y + matrix.bias
    y, _ = quantized_linear(SpikeTensor(*spikes), matrix.weight, matrix.scale[:, None], 0)
    return y if matrix.bias is None else y + matrix.bias


def normed(x: Tensor, norm: NormForm | None) -> Tensor:
    """RMSNorm over the last dimension; nothing without a norm."""
    return x if norm is None else deterministic.rms_norm(x, norm.weight, norm.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary pairs (x_i, x_{i+K/2}) of ``[N, H, K]`` by angles ``[N, K/2]``."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def mix(
    form: MixerForm,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: tuple[Tensor, Tensor],
    spikes: tuple[Tensor, Tensor],
    angles: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One token: q ``[1, H, K]``, k and v ``[1, G, K]`` -> o ``[1, H, K]`` and the new state."""
    if isinstance(form, SoftmaxAttentionForm):
        if form.rotary and angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        keys, values = torch.cat([state[0], k]), torch.cat([state[1], v])
        if form.window:
            keys, values = keys[-form.window :], values[-form.window :]
        return deterministic.attend(q[None], keys[None], values[None])[0], (keys, values)
    assert isinstance(form, LinearAttentionForm)
    gate = torch.full_like(k, -form.decay)[None] if form.decay else None
    if form.gate is not None:
        low = quantize_per_token(projected(spikes, form.gate.down))
        logits = deterministic.unary(projected(low, form.gate.up), "logsigmoid")
        gate = (logits / form.gate.tau).clamp_min(form.gate.floor).view(1, 1, *k.shape[1:])
    q = deterministic.unary(q, form.feature) * form.query_scale
    k = deterministic.unary(k, form.feature)
    s, z = state[0][None], state[1][None]
    out, norm, (s, z) = deterministic.scan(q[None], k[None], v[None], gate, (s, z))
    out = out / (norm[..., None] + form.eps) if form.norm is None else normed(out, form.norm)
    return out[0], (s[0], z[0])


def channels(form: FeedforwardForm, x: Tensor) -> Tensor:
    """A feed-forward layer on rows ``[N, D]``."""
    spikes = fire(x, form.inner)
    up = projected(spikes, form.up)
    first = deterministic.unary(up if form.gate is None else projected(spikes, form.gate), form.activation)
    first = shut(first, form.gate_threshold)
    up = deterministic.unary(up, "relu") if form.up_relu else up
    hidden = normed(first if form.gate is None else first * up, form.hidden_norm)
    return projected(fire(hidden, form.hidden), form.down)


def shut(gates: Tensor, least: Tensor | None) -> Tensor:
    """Gates ``[N, hidden]``, 0 where their magnitude is below `least` ``[hidden]``."""
    return gates if least is None else gates.masked_fill(gates.abs() < least, 0.0)


class ReferenceStepper:
    """``decode_step`` without a kernel: a plan, one token at a time."""

    def __init__(self, plan: DecoderPlan, wait: bool = True) -> None:
        check_plan(plan)
        self.plan, self.most_read = plan, 1

    def start(self, position: int, states: States, room: int = 0) -> ReferenceStream:
        """A stream that goes on from these states."""
        check_start(self.plan, position, states)
        return ReferenceStream(self, position, states)

    def step_many(self, streams: Sequence[ReferenceStream], tokens: Sequence[int]) -> list[Tensor | FastSNNError]:
        """The definition: one stream after the other."""
        return self.read_many(streams, [(token,) for token in tokens])

    def read_many(
        self, streams: Sequence[ReferenceStream], pieces: Sequence[Sequence[int]]
    ) -> list[Tensor | FastSNNError]:
        """The definition: one stream after the other, one token after the other."""
        check_distinct_streams(self, streams)
        out: list[Tensor | FastSNNError] = []
        for stream, piece in zip(streams, pieces, strict=True):
            try:
                if not len(piece):
                    raise FastSNNError("a stream reads at least one token")
                for token in piece:
                    check_token(self.plan, token)
                out.append([stream.step(token) for token in piece][-1])
            except FastSNNError as error:
                out.append(error)
        return out


class ReferenceStream:
    """`fastsnn_integer.decode_step.DecodeStream` in plain torch."""

    def __init__(self, stepper: ReferenceStepper, position: int, states: States) -> None:
        self.stepper, self.plan, self.position = stepper, stepper.plan, position
        self.held = [list(pairs) for pairs in states]

    @property
    def nbytes(self) -> int:
        """Memory of the states."""
        return sum(t.nbytes for pairs in self.held for pair in pairs for t in pair)

    def states(self) -> States:
        """All states, per block and form."""
        return [list(pairs) for pairs in self.held]

    @torch.no_grad()
    def step(self, token: int) -> Tensor:
        """Logits ``[vocab]`` after `token`."""
        check_token(self.plan, token)
        p = self.plan
        table: Any = p.table
        if isinstance(table, FourBitForm):
            x = four_bits.table_rows(table, torch.tensor([token]))
        else:
            x = table[token][None].float()
        x = x if p.table_scale is None else x * p.table_scale.reshape(-1)[token]
        for i, block in enumerate(p.blocks):
            x = self.block(x, block, self.held[i])
        self.position += 1
        return projected(fire(normed(x, p.norm), p.site), p.head)[0]

    def block(self, x: Tensor, block: BlockPlan, held: list[tuple[Tensor, Tensor]]) -> Tensor:
        """One residual block on a row ``[1, D]``; `held` takes in the token."""
        p, a, f = self.plan, block.attention, block.feedforward
        spikes = fire(normed(x, block.attention_norm), a.inner)
        q, k, v = (projected(spikes, m).view(1, -1, p.head_dim) for m in (a.q, a.k, a.v))
        q, k = normed(q, a.q_norm), normed(k, a.k_norm)
        angles = None
        if any(isinstance(m, SoftmaxAttentionForm) and m.rotary for m in a.mixers):
            cos, sin = p.angles(self.position + 1)
            angles = cos[self.position][None], sin[self.position][None]
        outs = []
        for m, form in enumerate(a.mixers):
            out, held[m] = mix(form, q, k, v, held[m], spikes, angles)
            outs.append(out)
        x = x + projected(fire(normed(torch.cat(outs, -1).flatten(1), a.out_norm), a.outer), a.out)
        return x + channels(f, normed(x, block.feedforward_norm))


def _run(make: Any, *sample: Any) -> Any:
    from fastsnn_integer.samples import run_decode_step

    return run_decode_step(make, *sample)


DECODE_STEP = Operator(
    "decode_step", ReferenceStepper, plain=True, samples=imported_later("fastsnn_integer.samples.decode_step"), run=_run
)


def stepper(plan: DecoderPlan, wait: bool = True) -> tuple[str, Any]:
    """``(kernel set, DecodeStepper)`` of the best kernel set on the CPU with a fused step; `Unsupported` without one.

    One that has to be compiled first is waited for, or, without `wait`, is `NotYet` while that happens.
    """
    kernel, make = DECODE_STEP.pick("cpu")
    if kernel == "naive":
        raise Unsupported("no kernel set in use has a fused decoding step; pip install fastsnn-kernel-numba")
    return kernel, make(plan, wait)
