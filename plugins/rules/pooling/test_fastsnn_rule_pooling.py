"""Pools, flattening and dropout hand spikes on; what they cannot take onto counts is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion import spike_layers
from fastsnn_conversion.testing import check_rule
from fastsnn_core.testing import conformance
from fastsnn_rule_pooling import Pooling, Shapes

test_pooling = conformance("pooling")

PASSES = {
    "max 1d": (nn.MaxPool1d(2), (2, 3, 8)),
    "max 2d": (nn.MaxPool2d(3, 2, 1, dilation=1), (2, 3, 8, 8)),
    "max 3d": (nn.MaxPool3d(2), (2, 3, 4, 4, 4)),
    "avg 1d": (nn.AvgPool1d(3, 2, 1), (2, 3, 8)),
    "avg 2d": (nn.AvgPool2d((2, 4)), (2, 3, 8, 8)),
    "avg 3d": (nn.AvgPool3d(2), (2, 3, 4, 4, 4)),
    "adaptive to one": (nn.AdaptiveAvgPool2d(1), (2, 3, 7, 5)),
    "adaptive to equal windows": (nn.AdaptiveAvgPool2d((4, None)), (2, 3, 8, 6)),
    "ours": (spike_layers.AvgPool(2, 2, 2), (2, 3, 8, 8)),
}
KEPT = {
    "ceil": (nn.MaxPool2d(3, ceil_mode=True), (2, 3, 8, 8), "ceil_mode cuts windows"),
    "padding that does not count": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 3, 8, 8), "different numbers"),
    "own divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 3, 8, 8), "different numbers"),
    "unequal windows": (nn.AdaptiveAvgPool2d(3), (2, 3, 8, 8), "are of different sizes"),
}


@pytest.mark.parametrize("case", PASSES)
def test_pools_work_on_counts(case):
    module, shape = PASSES[case]
    assert check_rule(Pooling(), module, torch.randn(shape)).spikes == "pass"


@pytest.mark.parametrize("case", KEPT)
def test_pools_that_are_not_exact_on_counts_are_kept(case):
    module, shape, note = KEPT[case]
    found = check_rule(Pooling(), module, torch.randn(shape))
    assert found.status == "kept"
    assert note in found.note


def test_a_pool_without_an_example_is_kept():
    found = check_rule(Pooling(), nn.AdaptiveAvgPool2d(1), torch.randn(2, 3, 4, 4), inputs=())
    assert found.note == "the size of its input is not known; give an example"


@pytest.mark.parametrize("module", [nn.Flatten(), nn.Identity(), nn.Dropout(0.3), spike_layers.Flatten()], ids=str)
def test_shapes_and_dropout_pass(module):
    assert check_rule(Shapes(), module, torch.randn(2, 3, 4)).spikes == "pass"


def test_unflatten_passes():
    assert check_rule(Shapes(), nn.Unflatten(1, (2, 3)), torch.randn(4, 6)).spikes == "pass"
    assert check_rule(Shapes(), nn.Unflatten(2, (2, 3)), torch.randn(4, 5, 6)).status == "kept"


def test_a_partial_flatten_is_kept():
    assert check_rule(Shapes(), nn.Flatten(2), torch.randn(2, 3, 4, 5)).status == "kept"


@pytest.mark.parametrize(
    ("call", "args", "kwargs"),
    [
        (F.max_pool2d, (2,), {}),
        (F.max_pool2d, (3, 2), {"padding": 1}),
        (F.avg_pool2d, (2,), {"stride": 1}),
        (F.avg_pool1d, (2,), {}),
        (F.adaptive_avg_pool2d, ((2, 2),), {}),
    ],
    ids=range(5),
)
def test_calls_stand_for_pools(call, args, kwargs):
    x = torch.randn(2, 3, 8, 8) if call is not F.avg_pool1d else torch.randn(2, 3, 8)
    module = Pooling().lift(call, (None, *args), kwargs)
    assert torch.equal(module(x), call(x, *args, **kwargs))


def test_calls_stand_for_flatten_and_dropout():
    assert isinstance(Shapes().lift(torch.flatten, (None, 1), {}), nn.Flatten)
    assert isinstance(Shapes().lift("flatten", (None,), {"start_dim": 1}), nn.Flatten)
    assert Shapes().lift(torch.flatten, (None,), {}) is None  # would flatten the batch, too
    assert Shapes().lift(F.dropout, (None,), {"p": 0.2, "training": False}).p == 0.2
    assert Shapes().lift(torch.add, (None, 1), {}) is None
