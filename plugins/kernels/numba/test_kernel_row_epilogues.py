"""`fused_row_ops`: the compiled kernels against their definitions, bit for bit, on memory full of NaN."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("numba")

import fastsnn_events
from fastsnn_core import ops
from fastsnn_core.lowering import MatrixForm, NormForm, SiteForm, SpikeRule
from fastsnn_integer import fused_row_ops
from fastsnn_integer.quantization import encode_int8

RULES = {
    "levels": SiteForm(),
    "mean": SiteForm(SpikeRule("mean_abs", divisor=3.0)),
    "limit": SiteForm(SpikeRule("mean_abs", divisor=3.0, bound=7.0)),
    "dead": SiteForm(SpikeRule("mean_abs", divisor=2.0, dead_zone=1.5)),
    "max": SiteForm(SpikeRule("max_abs", gain=0.7, divisor=15.0, bound=15.0)),
    "burst": SiteForm(SpikeRule("max_abs", divisor=15.0, bound=15.0, burst=4)),
    "rms": SiteForm(SpikeRule("rms", gain=0.3, divisor=2.0, v_max=1.0, bound=9.0, dead_zone=0.7)),
}


def numbers(*shape: int, odd: str = "") -> torch.Tensor:
    x = torch.randn(*shape)
    if odd == "outliers":
        x[1, ::7] *= 1e4
    elif odd == "zeros":
        x[::2] = 0.0
    elif odd == "equal":
        x[1] = 2.5
    elif odd:
        x[1, 2] = {"nan": math.nan, "inf": math.inf}[odd]
    return x


def sums(n: int, tall: int, bias: bool) -> fused_row_ops.Sums:
    scale, offset = torch.rand(tall) * 0.01, torch.randn(tall) if bias else None
    total = torch.randint(-5000, 5000, (n, tall), dtype=torch.int32)
    return fused_row_ops.Sums(total, MatrixForm(torch.empty(0), scale, offset), torch.linspace(0.1, 3, n)[:, None])


def gains(size: int) -> NormForm:
    return NormForm(torch.rand(size), 1e-5)


def both(call):
    """What the kernel and the definition give."""
    found = call()
    with ops.use("naive"):
        wanted = call()
    return found, wanted


def agree(found: fused_row_ops.CountRows, wanted: fused_row_ops.CountRows) -> None:
    assert torch.equal(found.v.nan_to_num(7.0), wanted.v.nan_to_num(7.0))
    assert found.narrow == wanted.narrow
    assert torch.equal(found.counts.nan_to_num(7.0), wanted.counts.nan_to_num(7.0))
    if found.narrow:
        assert found.active == wanted.active


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("odd", ["", "outliers", "zeros", "equal", "nan", "inf"])
@pytest.mark.parametrize("rule", list(RULES))
def test_residual(rule, odd):
    for size in (1, 24, 70) if rule != "burst" else (24, 70):
        centre = torch.randn(size) if size == 24 else None
        made = SiteForm(RULES[rule].rule, centre)
        start, add = numbers(5, max(size, 3), odd=odd)[:, :size].contiguous(), sums(5, size, size == 70)
        for extra, norm in ((None, None), (add, gains(size)), (add.dequantised(), gains(size))):
            xs = []

            def call(extra=extra, norm=norm, xs=xs, start=start, made=made):
                xs.append(start.clone())
                return fused_row_ops.residual(xs[-1], extra, norm, made)

            agree(*both(call))
            assert torch.equal(xs[0].nan_to_num(7.0), xs[1].nan_to_num(7.0))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("gated", [True, False])
def test_hidden(gated, activation):
    for rule in RULES.values():
        up, gate = sums(6, 41, True), sums(6, 41, False) if gated else None
        agree(*both(lambda up=up, gate=gate, rule=rule: fused_row_ops.hidden(up, gate, activation, rule)))


@pytest.mark.parametrize(("wide", "scale", "kind"), [(41, 1e3, torch.int16), (41000, 1e3, torch.float32)])
def test_hidden_with_large_counts(wide, scale, kind):
    up = sums(6, wide, False)
    up.matrix.scale[3] = scale
    found, wanted = both(lambda: fused_row_ops.hidden(up, None, "relu", RULES["mean"]))
    assert found.counts.dtype == wanted.counts.dtype == kind
    agree(found, wanted)


def test_counts_of_16_bits_only_where_32_hold_the_sums():
    """2^24 − 1 is the largest Σ|c|; one more, or one count beyond 32767, stays in float32."""
    for sizes, kind in (
        ([32767] * 512 + [511], torch.int16), ([32767] * 512 + [512], torch.float32), ([32768], torch.float32),
        ([127, -127], torch.int8), ([-128], torch.int16), ([math.inf], torch.float32), ([math.nan], torch.float32),
    ):  # fmt: skip
        assert fused_row_ops.narrowed(torch.tensor([[0.0] * len(sizes), sizes])).dtype == kind


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_heads(normed, turned):
    q, k, v = sums(9, 24, True), sums(9, 12, False), sums(9, 12, True)
    norms = (gains(6), gains(6)) if normed else (None, None)
    angles = (torch.rand(9, 3), torch.rand(9, 3)) if turned else None
    found, wanted = both(lambda: fused_row_ops.heads(q, k, v, 6, norms, angles))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("other", ["k", "v"])
def test_projections_with_thresholds_of_their_own(other):
    made = {"q": sums(9, 24, True), "k": sums(9, 12, False), "v": sums(9, 12, True)}
    made[other].v.copy_(torch.rand(9, 1) + 4)
    found, wanted = both(lambda: fused_row_ops.heads(*made.values(), 6, (None, None), None))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_gate_with_a_threshold_of_its_own():
    up, gate = sums(6, 41, True), sums(6, 41, False)
    gate.v.copy_(torch.rand(6, 1) + 4)
    agree(*both(lambda: fused_row_ops.hidden(up, gate, "silu", RULES["mean"])))


@pytest.mark.parametrize("density", [0.02, 0.9])
@pytest.mark.parametrize("n", [3, 40])
def test_project(n, density):
    weight = fastsnn_events.input_major(encode_int8(torch.randn(50, 70))[0])
    x = torch.randint(-127, 128, (n, 70), dtype=torch.int8) * (torch.rand(n, 70) < density)
    counts = fused_row_ops.CountRows(x, torch.ones(n, 1), int(torch.count_nonzero(x)))
    found, wanted = both(lambda: fused_row_ops.project(counts, MatrixForm(weight, torch.ones(50))).total)
    assert found.dtype == torch.int32
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("largest", [3, 113, 3000])
def test_project_without_a_fast_int8_product(monkeypatch, largest, trusted):
    """Counts of 16 bits, and all where torch's product is slow, go through tiles: the definition's sums, in 32 bits."""
    from fastsnn_events import byte_product

    monkeypatch.setattr(byte_product, "trusted", lambda: trusted)
    x = torch.randint(-largest, largest + 1, (40, 300)).float()
    x[:, 5:] %= 50.0  # large counts stay on few inputs
    rows = fused_row_ops.CountRows(fused_row_ops.narrowed(x), torch.ones(40, 1), int(torch.count_nonzero(x)))
    weight = fastsnn_events.input_major(encode_int8(torch.randn(48, 300))[0])
    for layout in (weight, weight.contiguous()):
        found, wanted = both(lambda w=layout: fused_row_ops.project(rows, MatrixForm(w, torch.ones(48))).total)
        assert found.dtype == wanted.dtype == torch.int32
        assert torch.equal(found, wanted)


def test_sums_that_32_bits_do_not_hold_stay_in_64():
    counts = torch.full((33, 600), 32767, dtype=torch.int16)
    rows = fused_row_ops.CountRows(counts, torch.ones(33, 1), counts.numel())
    weight = fastsnn_events.input_major(torch.full((32, 600), 127, dtype=torch.int8))
    found = fused_row_ops.project(rows, MatrixForm(weight, torch.ones(32))).total
    assert torch.equal(found, counts.long() @ weight.long().T)
