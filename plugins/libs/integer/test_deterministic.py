"""The fixed-order forms: right to float32, equal bits for equal rows, and what quantised layers do, without plugins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fastsnn_core import SpikeTensor, ops
from fastsnn_integer import deterministic
from fastsnn_integer.quantization import (
    Quant,
    QuantEmbedding,
    QuantLinear,
    RowLinear,
    RowNorm,
    apply,
    decode_levels,
    encode_int8,
    not_batch_invariant,
    quantise,
    quantize_per_token,
)
from fastsnn_linear_scan import linear_scan_naive

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
TORCH = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "elu1": lambda x: F.elu(x) + 1,
    "logsigmoid": F.logsigmoid,
}


@pytest.fixture(autouse=True)
def naive():
    with ops.use("naive"):
        yield


@pytest.mark.parametrize("form", list(deterministic.FORMS))
def test_unary_is_the_function(form):
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e-30, -1e-30, 60.0, -60.0])])
    wanted = TORCH[form](x.double())
    found = deterministic.unary(x, form).double()
    assert float(((found - wanted).abs() / wanted.abs().clamp_min(1.0)).max()) < 3e-7
    assert deterministic.unary(torch.tensor([math.nan]), form).isnan().all()
    assert deterministic.unary(x.double(), form).dtype == torch.float64


@quick
@given(st.integers(1, 70), st.integers(0, 5), st.data())
def test_fold_is_the_sum_and_knows_only_its_row(size, seed, data):
    torch.manual_seed(seed)
    x = torch.randn(9, size)
    found = deterministic.row_sum(x)
    assert torch.allclose(found, x.sum(-1, keepdim=True), atol=1e-5)
    rows = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=12))
    assert torch.equal(deterministic.row_sum(x[rows]), found[rows])
    assert torch.equal(deterministic.row_sum(x, "abs"), deterministic.row_sum(x.abs()))
    assert torch.equal(deterministic.row_sum(x, "square"), deterministic.row_sum(x * x))
    assert torch.equal(deterministic.fold(x.T, 0)[:, None], found)


def test_empty_sums():
    assert deterministic.row_sum(torch.zeros(3, 0)).tolist() == [[0.0]] * 3
    assert deterministic.attend(torch.ones(1, 2, 1, 4), torch.ones(1, 0, 1, 4), torch.ones(1, 0, 1, 4)).tolist() == [
        [[[0.0] * 4]] * 2
    ]


@quick
@given(st.data())
def test_attention_is_softmax_and_padding_is_nothing(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 50)))
    b, t, s, g, r = (draw(st.integers(1, 4)) for _ in range(5))
    q, k, v = torch.randn(b, t, g * r, 6), torch.randn(b, s, g, 6), torch.randn(b, s, g, 5)
    allowed = torch.rand(b, t, s) < 0.7
    allowed[..., 0] = True
    found = deterministic.attend(q, k, v, allowed)
    heads = (x.transpose(1, 2).repeat_interleave(r, 1) for x in (k, v))
    wanted = F.scaled_dot_product_attention(q.transpose(1, 2), *heads, allowed[:, None]).transpose(1, 2)
    assert torch.allclose(found, wanted, atol=1e-5)
    wide = [torch.cat([torch.full_like(x, math.nan), x, torch.full_like(x, math.inf)], 1) for x in (k, v)]
    hidden = torch.zeros_like(allowed)
    assert torch.equal(deterministic.attend(q, *wide, torch.cat([hidden, allowed, hidden], 2)), found)
    assert torch.equal(deterministic.attend(q[:, -1:], k, v, allowed[:, -1:]), found[:, -1:])


@quick
@given(st.data())
def test_scan_is_the_scan_in_any_pieces(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 50)))
    b, t, g, r = 2, 7, draw(st.integers(1, 2)), draw(st.integers(1, 2))
    q, k, v = torch.randn(b, t, g * r, 6), torch.randn(b, t, g, 6), torch.randn(b, t, g, 5)
    log_g = -torch.rand(b, t, g, 6) if draw(st.booleans()) else None
    reset = torch.rand(b, t) < 0.3 if draw(st.booleans()) else None
    o, n, state = deterministic.scan(q, k, v, log_g, None, reset)
    wanted = linear_scan_naive(q, k, v, log_g, None, reset)
    assert torch.allclose(o, wanted[0], atol=1e-4)
    assert torch.allclose(n, wanted[1], atol=1e-4)
    at, carried, outs = draw(st.integers(0, t)), None, []
    for part in (slice(0, at), slice(at, t)):
        cut = [x if x is None else x[:, part] for x in (log_g, reset)]
        piece, _, carried = deterministic.scan(q[:, part], k[:, part], v[:, part], cut[0], carried, cut[1])
        outs.append(piece)
    assert torch.equal(torch.cat(outs, 1), o)
    assert all(torch.equal(x, y) for x, y in zip(carried, state))


# -- quantised layers ---------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 30), st.sampled_from([0, 3, 8, 64]), st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1e30]))
def test_codes_are_within_half_a_step_and_clamped(seed, group, size):
    torch.manual_seed(seed)
    weight = torch.randn(5, 17) * size
    codes, scale = encode_int8(weight, group)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= 127
    steps = scale.repeat_interleave(group or 17, -1)[:, :17]
    if size < 1e-30:  # a step is hardly a number any more; clamped all the same
        return
    assert bool(((decode_levels(codes, scale, group) - weight).abs() <= 0.5001 * steps).all())
    assert torch.equal(scale.bfloat16().float(), scale), "scales are stored in bfloat16"
    if not group:
        assert (codes.abs().amax(-1) >= 126).all()  # 127 / (1 + 2^-7) and more


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    model = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[1, 1] = bad
    with pytest.raises(ValueError, match=r"^0: weights must be finite"):
        apply(model, Quant())


@quick
@given(st.data())
def test_integer_layer(data):
    """The equation of the module, in 64-bit integers, for every view of the spikes, with its bias once."""
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 30)))
    group, bias = draw(st.sampled_from([0, 4, 5, 64])), draw(st.booleans())
    layer = QuantLinear(nn.Linear(13, 7, bias=bias), group)
    counts = torch.randint(-20, 21, (2, 3, 13)).float()
    spikes = SpikeTensor(counts, torch.rand(2, 3, 1) + 0.5)
    size, total = group or 13, 0
    for g, first in enumerate(range(0, 13, size)):
        part = counts[..., first : first + size].long() @ layer.weight[:, first : first + size].long().T
        total = total + part.float() * layer.scale[:, g]
    wanted = total * spikes.scale if not bias else total * spikes.scale + layer.bias
    assert torch.equal(layer(spikes), wanted)
    slots = torch.stack([(counts.abs() > i) * counts.sign() for i in range(20)]).to(torch.int8)
    train = SpikeTensor.from_train(slots, torch.ones(20, dtype=torch.int64), spikes.scale)
    assert torch.equal(layer(train), wanted)
    assert torch.equal(layer(train.event()), wanted)
    assert torch.equal(layer(spikes)[1:], layer(SpikeTensor(counts[1:], spikes.scale[1:])))


def test_numbers_become_counts_of_eight_bits():
    layer = QuantLinear(nn.Linear(40, 30))
    x = torch.randn(6, 40)
    codes, scale = quantize_per_token(x)
    assert torch.equal(layer(x), layer(SpikeTensor(codes, scale)))
    assert torch.allclose(layer(x), F.linear(x, decode_levels(layer.weight, layer.scale), layer.bias), atol=0.02)
    assert quantize_per_token(torch.zeros(2, 3))[1].tolist() == [[1.0], [1.0]]
    assert quantize_per_token(torch.full((1, 3), 1e-45))[0].tolist() == [[0.0] * 3]


def test_errors_name_what_is_wrong():
    layer = QuantLinear(nn.Linear(4, 2))
    with pytest.raises(ValueError, match="threshold per token, this input has"):
        layer(SpikeTensor(torch.ones(1, 4), torch.ones(4)))
    with pytest.raises(ValueError, match="whole numbers"):
        layer(SpikeTensor(torch.full((1, 4), math.nan)))
    with pytest.raises(OverflowError, match="64 bits"):
        layer(SpikeTensor(torch.full((1, 4), 2**62)))
    with pytest.raises(ValueError, match="Linear has no integer form"):
        quantise(nn.Linear(2, 2))


def test_tables_are_rows_and_heads():
    table = QuantEmbedding(nn.Embedding(11, 8), group=4)
    rows = decode_levels(table.weight, table.scale, 4)
    assert torch.equal(table(torch.tensor([[3, 10]])), rows[[3, 10]][None])
    x = torch.randn(2, 8)
    assert torch.allclose(table(x), x @ rows.T, atol=0.05)


def test_norms_and_rows():
    norm, x = RowNorm(40), torch.randn(3, 40)
    nn.init.normal_(norm.weight)
    assert torch.allclose(norm(x), F.rms_norm(x, (40,), norm.weight, norm.eps), atol=1e-5)
    assert torch.equal(norm(x[1:2]), norm(x)[1:2])
    row = RowLinear(40, 5)
    assert torch.allclose(row(x), F.linear(x, row.weight, row.bias), atol=1e-5)
    assert row(x[:0]).shape == (0, 5)
    wide = row.double()  # sites and integer layers hand over float32 whatever the float layers were cast to
    assert torch.allclose(wide(x).float(), F.linear(x, row.weight.float(), row.bias.float()), atol=1e-5)


def test_what_nobody_vouches_for_is_named():
    model = apply(nn.Sequential(nn.Linear(3, 3), nn.RMSNorm(3), nn.GELU(), nn.Embedding(2, 3)), Quant(embed=False))
    assert not_batch_invariant(model) == ["2 (GELU)"]
    assert [type(m).__name__ for m in model] == ["QuantLinear", "RowNorm", "GELU", "Embedding"]
