"""Batch norms are folded exactly, in both directions; other norms are kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.testing import check_rule, context
from fastsnn_core.testing import conformance
from fastsnn_rule_norms import BatchNorm, Norms

test_norms = conformance("norms")


def settled(norm: nn.Module) -> nn.Module:
    """A batch norm with statistics and weights that matter."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 2.0)
    if norm.affine:
        nn.init.uniform_(norm.weight, -1, 2)
        nn.init.normal_(norm.bias)
    return norm.double().eval()


BACK = {
    "linear": (nn.Linear(5, 6), nn.BatchNorm1d(6), (4, 5)),
    "linear without bias": (nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6, affine=False), (4, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (4, 4, 8)),
    "conv2d padded": (nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), (4, 4, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 4, 5, 5)),
    "transposed 3d": (nn.ConvTranspose3d(2, 4, 2, bias=False), nn.BatchNorm3d(4), (2, 2, 3, 3, 3)),
}


@pytest.mark.parametrize("case", BACK)
def test_folding_backwards_is_exact(case):
    layer, norm, shape = BACK[case]
    layer, norm, x = layer.double(), settled(norm), torch.randn(shape, dtype=torch.float64)
    wanted = norm(layer(x))
    found = BatchNorm().convert(norm, context(before=layer))
    assert (found.status, found.spikes, found.note) == ("converted", "pass", "folded into the layer before it")
    torch.testing.assert_close(found.module(layer(x)), wanted, rtol=1e-12, atol=1e-12)


FORWARD = {
    "linear": (nn.BatchNorm1d(5), nn.Linear(5, 6), (4, 5)),
    "linear behind a flatten": (nn.BatchNorm2d(3), nn.Linear(3 * 4, 6, bias=False), (4, 3, 2, 2)),
    "conv2d": (nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 6, 3), (4, 4, 6, 6)),
}


@pytest.mark.parametrize("case", FORWARD)
def test_folding_forwards_is_exact(case):
    norm, layer, shape = FORWARD[case]
    layer, norm, x = layer.double(), settled(norm), torch.randn(shape, dtype=torch.float64)
    flat = (lambda t: t.flatten(1)) if "flatten" in case else (lambda t: t)
    wanted = layer(flat(norm(x)))
    found = BatchNorm().convert(norm, context(after=layer))
    assert found.note == "folded into the layer behind it"
    torch.testing.assert_close(layer(flat(found.module(x))), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "after", [nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 4, 3, groups=2), nn.Linear(3, 2), nn.ReLU(), None]
)
def test_where_nothing_fits_the_norm_is_kept(after):
    norm = settled(nn.BatchNorm2d(4))
    before = copy.deepcopy(after)
    found = BatchNorm().convert(norm, context(after=after, before=nn.ReLU()))
    assert found.status == "kept"
    assert found.module is norm
    if after is not None:
        for a, b in zip(after.parameters(), before.parameters()):
            assert torch.equal(a, b)


def test_a_norm_without_statistics_is_kept():
    found = BatchNorm().convert(nn.BatchNorm1d(3, track_running_stats=False), context(before=nn.Linear(2, 3)))
    assert found.note == "has no running statistics, so it works on each batch"


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.LayerNorm(6), (4, 6)),
        (nn.RMSNorm(6), (4, 3, 6)),
        (nn.GroupNorm(2, 6), (4, 6, 5)),
        (nn.InstanceNorm1d(6), (4, 6, 5)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_norms_over_channels_are_kept_and_say_so(module, shape):
    found = check_rule(Norms(), module, torch.randn(shape))
    assert (found.status, found.note) == ("kept", "needs every channel's value; the projection behind it spikes")


def test_norms_without_a_module_say_why_they_stay():
    assert "would be folded" in Norms().lift(F.batch_norm, (), {})
    assert Norms().lift(F.group_norm, (), {}) == "needs every channel's value; the projection behind it spikes"
    assert Norms().lift(F.relu, (), {}) is None
