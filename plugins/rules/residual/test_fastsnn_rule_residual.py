"""Joins stay calls, with a reason."""

from __future__ import annotations

import operator

import torch
from torch import nn

from fastsnn_core.testing import conformance
from fastsnn_rule_residual import Residual

test_residual = conformance("residual")


def test_sums_products_and_joins_say_why_they_stay():
    rule = Residual()
    assert not rule.matches(nn.Identity())
    assert "added" in rule.lift(operator.add, (), {})
    assert "added" in rule.lift("add", (), {})
    assert "a gate" in rule.lift(torch.mul, (), {})
    assert "side by side" in rule.lift(torch.cat, (), {})
    assert rule.lift(torch.relu, (), {}) is None
