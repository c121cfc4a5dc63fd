"""Activations become spikes of their output, whether they are modules or calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.testing import check_rule
from fastsnn_core.testing import conformance
from fastsnn_rule_activations import CALLS, MODULES, Activations

test_activations = conformance("activations")


@pytest.mark.parametrize("cls", MODULES, ids=lambda c: c.__name__)
def test_an_activation_spikes_where_somebody_reads_spikes(cls):
    module = cls(0.1, 20.0) if cls is nn.Threshold else cls()
    found = check_rule(Activations(), module, torch.randn(4, 9))
    assert (found.status, found.spikes) == ("converted", "out")
    found = check_rule(Activations(), module, torch.randn(4, 9), wanted=False)
    assert (found.status, found.spikes) == ("kept", "no")
    assert "nothing downstream reads its output as spikes" in found.note


def test_the_value_that_an_activation_would_overwrite_is_left():
    x = torch.tensor([-1.0, 2.0])
    found = check_rule(Activations(), nn.ReLU(inplace=True), x[None])
    assert torch.equal(found.module(x.double()), torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert x.tolist() == [-1.0, 2.0]
    assert "signed" not in found.note


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_calls_stand_for_modules_of_equal_value(number):
    call = list(CALLS)[number]
    module, x = Activations().lift(call, (None,), {}), torch.randn(3, 5)
    wanted = getattr(x.clone(), call)() if isinstance(call, str) else call(x.clone())
    assert torch.equal(module(x), wanted)


@pytest.mark.parametrize(
    ("call", "args", "kwargs"),
    [
        (F.leaky_relu, (0.3,), {}),
        (F.leaky_relu, (), {"negative_slope": 0.2}),
        (F.elu, (), {"alpha": 0.7}),
        (F.gelu, (), {"approximate": "tanh"}),
        (F.gelu, (), {}),
        (F.softplus, (), {}),
    ],
    ids=range(6),
)
def test_calls_keep_their_parameters(call, args, kwargs):
    x = torch.randn(3, 5)
    assert torch.equal(Activations().lift(call, (None, *args), kwargs)(x), call(x, *args, **kwargs))


def test_what_is_no_activation_is_not_lifted():
    assert Activations().lift(torch.add, (None, 1), {}) is None
    assert Activations().lift(F.softplus, (None, 2.0), {}) is None
