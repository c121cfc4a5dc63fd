"""Sample inputs of this library's operators, on which the conformance kit compares kernels with the naive twins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.lowering import (
    AttentionForm,
    BlockPlan,
    DecoderPlan,
    FeedforwardForm,
    GateForm,
    LinearAttentionForm,
    MatrixForm,
    MixerForm,
    NormForm,
    SiteForm,
    SoftmaxAttentionForm,
    SpikeRule,
)
from fastsnn_integer.forms import FourBitForm, TernaryForm

Sample = tuple[Any, ...]
SITES = {
    "int8": SiteForm(),
    "mean": SiteForm(SpikeRule("mean_abs", divisor=3.0)),
    "limited": SiteForm(SpikeRule("mean_abs", divisor=2.0, bound=7.0, dead_zone=1.0)),
    "max": SiteForm(SpikeRule("max_abs", gain=0.7, divisor=15.0, bound=15.0)),
    "burst": SiteForm(SpikeRule("max_abs", divisor=15.0, bound=15.0, burst=2)),
    "rms": SiteForm(SpikeRule("rms", divisor=2.0)),
}


def normal(seed: int, *shape: int) -> Tensor:
    """Numbers from a fixed seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes(seed: int, tall: int, inputs: int) -> Tensor:
    """INT8 weights, input-major."""
    drawn = torch.randint(-127, 128, (inputs, tall), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.int8).T


def matrix(seed: int, tall: int, inputs: int, bias: bool = False) -> MatrixForm:
    """A projection."""
    scale = normal(seed, tall).abs() * 0.01 + 1e-4
    return MatrixForm(codes(seed, tall, inputs), scale, normal(seed + 1, tall) if bias else None)


def four_bits(seed: int, tall: int, inputs: int, bias: bool = False, minimum: bool = True) -> FourBitForm:
    """A projection with 4-bit weights in groups of 32 inputs."""
    from fastsnn_integer.four_bits import encode_four_bits, pack_codes

    made, d, m = encode_four_bits(normal(seed, tall, inputs) * 0.1, 32, minimum)
    bias_ = normal(seed + 1, tall) if bias else None
    return FourBitForm(pack_codes(made), d, bias_, minimum=m, group=32)


def ternary_weights(seed: int, tall: int, inputs: int, bias: bool = False) -> TernaryForm:
    """A projection with ternary weights."""
    from fastsnn_integer.ternary import pack_ternary

    drawn = torch.randint(-1, 2, (tall, inputs), generator=torch.Generator().manual_seed(seed))
    scale = normal(seed, tall).abs() * 0.01 + 1e-4
    return TernaryForm(pack_ternary(drawn), scale, normal(seed + 1, tall) if bias else None)


def sample_norm(seed: int, size: int, eps: float = 1e-5) -> NormForm:
    """A norm."""
    return NormForm(1 + 0.1 * normal(seed, size), eps)


def sample_sums(seed: int, rows: int, tall: int, bias: bool) -> Any:
    """A projection before its scaling."""
    from fastsnn_integer.fused_row_ops import Sums

    total = torch.randint(-5000, 5000, (rows, tall), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    return Sums(total, matrix(seed, tall, 3, bias), torch.linspace(0.1, 3, rows)[:, None])


def unary() -> Iterator[Sample]:
    """Every activation on ordinary numbers and at the edges."""
    from fastsnn_integer.deterministic import FORMS

    edges = torch.tensor([0.0, -0.0, 1e-40, 1e30, -1e30, 87.5, -88.5, math.inf, -math.inf, math.nan])
    for form in FORMS:
        yield normal(1, 7, 33) * 3, form
        yield edges, form


def row_sum() -> Iterator[Sample]:
    """Every sum, on rows of even and odd widths."""
    for form in ("sum", "abs", "square"):
        for size in (1, 3, 48):
            yield normal(size, 5, size), form


def norms() -> Iterator[Sample]:
    """Rows with a weight and without."""
    yield normal(1, 5, 24), normal(2, 24), 1e-5
    yield normal(3, 4, 7), torch.empty(0), 1e-3


def attend() -> Iterator[Sample]:
    """One query and many, some keys hidden."""
    for t, keys in ((1, 70), (9, 9)):
        q, k, v = normal(1, 2, t, 4, 6), normal(2, 2, keys, 2, 6), normal(3, 2, keys, 2, 5)
        allowed = torch.ones(2, t, keys, dtype=torch.bool).tril(keys - t)
        allowed[0, :, : keys // 3] = False
        yield q, k, v, allowed


def scan() -> Iterator[Sample]:
    """With gates and resets, and without."""
    q, k, v = normal(1, 2, 5, 4, 6), normal(2, 2, 5, 2, 6), normal(3, 2, 5, 2, 6)
    s, z, none = normal(4, 2, 2, 6, 6), normal(5, 2, 2, 6), torch.empty(0)
    yield q, k, v, torch.sigmoid(normal(6, 2, 5, 2, 6)), s, z, torch.arange(10).view(2, 5) != 3
    yield q, k, v, none, s, z, none.bool()


def residual() -> Iterator[Sample]:
    """Every rule behind sums, numbers and nothing; counts of 8 bits and more."""
    for i, site in enumerate(SITES.values()):
        yield normal(i, 5, 24), sample_sums(i, 5, 24, bool(i % 2)), sample_norm(i, 24), site
        yield normal(i, 5, 24), None, None, SiteForm(site.rule, normal(9, 24))
        yield normal(i, 3, 24) ** 9 * 100, normal(i, 3, 24), sample_norm(i, 24, 1e-3), site


def hidden() -> Iterator[Sample]:
    """Gated and not, every activation of a feed-forward layer."""
    for i, activation in enumerate(("silu", "gelu", "gelu_tanh", "relu", "relu2")):
        yield sample_sums(i, 6, 41, True), sample_sums(i + 9, 6, 41, False), activation, SITES["mean"]
        yield (
            sample_sums(i, 6, 41, True),
            sample_sums(i + 9, 6, 41, False),
            activation,
            SITES["mean"],
            normal(i, 41).abs(),
        )
        yield sample_sums(i, 6, 41, True), sample_sums(i + 9, 6, 41, False), activation, SITES["mean"], None, True
        yield sample_sums(i, 6, 41, False), None, activation, SITES["max"]


def heads() -> Iterator[Sample]:
    """Norms and rotation, each on and off."""
    q, k, v = sample_sums(1, 9, 24, True), sample_sums(2, 9, 12, False), sample_sums(3, 9, 12, True)
    angles = normal(4, 9, 3).cos(), normal(4, 9, 3).sin()
    for by in ((None, None), (sample_norm(5, 6), sample_norm(6, 6, 1e-3))):
        for turn in (None, angles):
            yield q, k, v, 6, by, turn


def project() -> Iterator[Sample]:
    """Few events and many."""
    from fastsnn_integer.fused_row_ops import CountRows

    for rows, share in ((3, 0.1), (40, 0.9)):
        draw = torch.Generator().manual_seed(rows)
        counts = torch.randint(-127, 128, (rows, 70), generator=draw).to(torch.int8)
        counts = counts * (torch.rand(rows, 70, generator=draw) < share)
        yield CountRows(counts, torch.ones(rows, 1), int(torch.count_nonzero(counts))), codes(1, 50, 70)


def project_q4() -> Iterator[Sample]:
    """With a minimum and without; whole groups and not; odd outputs; many, few, large and no counts."""
    from fastsnn_integer import four_bits

    for i, (rows, wide, tall, group, largest) in enumerate(
        ((1, 64, 50, 32, 3), (5, 41, 7, 32, 20), (3, 130, 1100, 64, 5000), (2, 33, 1, 128, 1), (40, 96, 24, 32, 2))
    ):
        draw = torch.Generator().manual_seed(i)
        counts = torch.randint(-largest, largest + 1, (rows, wide), generator=draw).float()
        counts = counts * (torch.rand(rows, wide, generator=draw) < 0.6)
        counts[-1] = 0
        for minimum in (True, False):
            made, d, m = four_bits.encode_four_bits(normal(i, tall, wide), group, minimum)
            yield counts, four_bits.pack_codes(made), d, m, group


def project_ternary() -> Iterator[Sample]:
    """Widths around whole tiles, odd outputs; many, few, large and no counts; one row and many."""
    from fastsnn_integer.ternary import pack_ternary

    for i, (rows, wide, tall, largest) in enumerate(
        ((1, 64, 128, 3), (5, 41, 7, 20), (3, 130, 1100, 5000), (2, 33, 1, 1), (40, 300, 515, 127), (1, 700, 2052, 127))
    ):
        draw = torch.Generator().manual_seed(i)
        counts = torch.randint(-largest, largest + 1, (rows, wide), generator=draw).float()
        counts = counts * (torch.rand(rows, wide, generator=draw) < 0.6)
        if rows > 1:
            counts[-1] = 0
        made = torch.randint(-1, 2, (tall, wide), generator=draw)
        yield counts, pack_ternary(made), normal(i, tall).abs() * 0.1


# -- decode_step --------------------------------------------------------------------------------------------------

GROUPS, SIZE, HEADS, WIDTH, VOCAB = 2, 6, 4, 24, 19


def mixers(make: Any = matrix) -> dict[str, tuple[MixerForm, ...]]:
    """Attentions that between them use every constant of their forms."""
    gate = GateForm(make(21, 4, WIDTH), make(22, GROUPS * SIZE, 4, True), 16.0, -5.0)
    gated = LinearAttentionForm("relu", gate=gate, query_scale=SIZE**-0.5, norm=sample_norm(23, SIZE, 1e-3))
    return {
        "linear": (LinearAttentionForm("elu1", eps=1e-6),),
        "fading": (LinearAttentionForm("sigmoid", decay=0.3, query_scale=0.5, eps=1e-3),),
        "gated": (gated,),
        "softmax": (SoftmaxAttentionForm(),),
        "window": (SoftmaxAttentionForm(window=3, rotary=False),),
        "several": (SoftmaxAttentionForm(window=5), gated, LinearAttentionForm("relu", decay=1.0, eps=1e-4)),
    }


def block(
    seed: int, forms: tuple[MixerForm, ...], sites: list[SiteForm], activation: str, gated: bool, make: Any = matrix
) -> BlockPlan:
    """One block around these mixers."""
    inside, hidden = HEADS * SIZE * len(forms), 41
    attention = AttentionForm(
        inner=sites[0],
        q=make(seed, HEADS * SIZE, WIDTH, True),
        k=make(seed + 1, GROUPS * SIZE, WIDTH),
        v=make(seed + 2, GROUPS * SIZE, WIDTH),
        mixers=forms,
        outer=sites[1],
        out=make(seed + 3, WIDTH, inside),
        q_norm=sample_norm(seed, SIZE, 1e-4) if gated else None,
        k_norm=sample_norm(seed + 1, SIZE, 1e-2) if gated else None,
    )
    feedforward = FeedforwardForm(
        inner=sites[2],
        up=make(seed + 4, hidden, WIDTH),
        gate=make(seed + 5, hidden, WIDTH) if gated else None,
        activation=activation,
        gate_threshold=normal(seed + 7, hidden).abs() * 0.3 if gated and seed % 10 else None,
        hidden=sites[3],
        down=make(seed + 6, WIDTH, hidden, True),
    )
    return BlockPlan(
        f"layers.{seed}", sample_norm(seed, WIDTH), attention, sample_norm(seed + 1, WIDTH, 1e-2), feedforward
    )


def angles(places: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the first positions."""
    turn = torch.arange(max(places, 64), dtype=torch.float64)[:, None] * torch.logspace(0, -2, SIZE // 2).double()
    return turn.cos(), turn.sin()


def decode_step() -> Iterator[Sample]:
    """``(plan, position, states, tokens)``: every mixer, rule and activation, from running states."""
    rules = list(SITES.values())
    for i, forms in enumerate(mixers().values()):
        sites = [SiteForm(rules[(i + j) % len(rules)].rule, normal(j, WIDTH) if j == 2 else None) for j in range(4)]
        gated, activation = i % 2 == 0, ("silu", "gelu", "gelu_tanh", "relu")[i % 4]
        blocks = (block(10 * i, forms, sites, activation, gated), block(10 * i + 3, forms, rules[:4], "silu", True))
        table = codes(i, WIDTH, VOCAB).T.contiguous()
        plan = DecoderPlan(
            width=WIDTH, n_heads=HEADS, n_kv_heads=GROUPS, head_dim=SIZE, table=table,
            table_scale=normal(i, VOCAB, 1).abs(), blocks=blocks, norm=sample_norm(i, WIDTH),
            site=rules[i % len(rules)], head=matrix(i, VOCAB, WIDTH), angles=angles,
        )  # fmt: skip
        states = [[sample_state(form, 4) for form in forms] for _ in blocks]
        yield plan, 4, states, [1, 5, 5, VOCAB - 1, 0]
    for minimum in (True, False):  # 4 bits, in the table and the head, too
        make: Any = partial(four_bits, minimum=minimum)
        forms, sites = mixers(make)["several"], [SITES[name] for name in ("mean", "int8", "limited", "mean")]
        blocks = (block(50, forms, sites, "silu", True, make), block(61, forms, sites, "relu", False, make))
        plan = DecoderPlan(
            width=WIDTH, n_heads=HEADS, n_kv_heads=GROUPS, head_dim=SIZE, table=make(7, VOCAB, WIDTH), table_scale=None,
            blocks=blocks, norm=sample_norm(5, WIDTH), site=SITES["int8"], head=make(8, VOCAB, WIDTH), angles=angles,
        )  # fmt: skip
        yield plan, 4, [[sample_state(form, 4) for form in forms] for _ in blocks], [1, 5, 5, VOCAB - 1, 0]
    forms, sites = mixers(ternary_weights)["several"], [SITES[name] for name in ("mean", "int8", "limited", "mean")]
    blocks = (
        block(50, forms, sites, "silu", True, ternary_weights),
        block(61, forms, sites, "relu", False, ternary_weights),
    )
    plan = DecoderPlan(
        width=WIDTH, n_heads=HEADS, n_kv_heads=GROUPS, head_dim=SIZE, table=codes(7, WIDTH, VOCAB).T.contiguous(),
        table_scale=normal(7, VOCAB, 1).abs(), blocks=blocks, norm=sample_norm(5, WIDTH), site=SITES["int8"],
        head=matrix(8, VOCAB, WIDTH), angles=angles,
    )  # fmt: skip
    yield plan, 4, [[sample_state(form, 4) for form in forms] for _ in blocks], [1, 5, 5, VOCAB - 1, 0]


def sample_state(form: MixerForm, seen: int) -> tuple[Tensor, Tensor]:
    """A state after some tokens."""
    if isinstance(form, LinearAttentionForm):
        return normal(1, GROUPS, SIZE, SIZE), normal(2, GROUPS, SIZE).abs()
    held = min(seen, form.window or seen)
    return normal(3, held, GROUPS, SIZE), normal(4, held, GROUPS, SIZE)


def run_decode_step(make: Any, plan: DecoderPlan, position: int, states: Any, tokens: list[int]) -> Any:
    """Logits of every token, and the states at the end; then three streams at different places, stepped together."""
    stepper = make(plan, True)
    stream = stepper.start(position, states)
    logits = [stream.step(token) for token in tokens]
    streams = [stepper.start(position, states) for _ in range(3)]
    for place, behind in enumerate(streams[1:]):
        for token in tokens[: place + 1]:
            behind.step(token)
    many = [stepper.step_many(some, tokens[: len(some)]) for some in (streams, streams[::-1], streams[:1])]
    many = [[str(y) if isinstance(y, Exception) else y for y in row] for row in many]
    return logits, ends(plan, stream), many, [ends(plan, s) for s in streams]


def ends(plan: DecoderPlan, stream: Any) -> list[Any]:
    """States of a stream, as many tokens as are seen."""
    return [
        tuple(x[-form.window :] if isinstance(form, SoftmaxAttentionForm) and form.window else x for x in pair)
        for block, pairs in zip(plan.blocks, stream.states(), strict=True)
        for form, pair in zip(block.attention.mixers, pairs, strict=True)
    ]
