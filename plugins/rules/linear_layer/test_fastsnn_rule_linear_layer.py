"""Linear layers read spikes and keep their value."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.testing import check_rule
from fastsnn_core.testing import conformance
from fastsnn_rule_linear_layer import LinearRule

test_linear_layer = conformance("linear_layer")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6)])
def test_a_linear_layer_reads_spikes(bias, shape):
    found = check_rule(LinearRule(), nn.Linear(6, 3, bias=bias), torch.randn(shape))
    assert (found.status, found.spikes) == ("converted", "in")


def test_a_layer_of_another_kind_is_left_to_its_own_rule():
    class Quantised(nn.Linear):
        """Somebody's own layer."""

    assert not LinearRule().matches(Quantised(2, 2))
    assert not LinearRule().matches(nn.Bilinear(2, 2, 2))


def test_a_product_without_a_module_says_why_it_stays():
    assert "an nn.Linear in its place" in LinearRule().lift(F.linear, (), {})
    assert LinearRule().lift(torch.matmul, (), {}) == LinearRule().lift("bmm", (), {}) == "a product of two values"
    assert LinearRule().lift(torch.add, (), {}) is None
