"""Convolutions read spikes and keep their value."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.testing import check_rule, context
from fastsnn_core.testing import conformance
from fastsnn_rule_conv import Conv

test_conv = conformance("conv")

CASES = {
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "2d": (nn.Conv2d(4, 6, 3), (2, 4, 8, 8)),
    "2d groups": (nn.Conv2d(4, 6, (3, 1), groups=2, dilation=2, bias=False), (2, 4, 8, 8)),
    "2d same": (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 8, 8)),
    "3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "1d transposed": (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
    "2d transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 5)),
    "3d transposed": (nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_convolution_reads_spikes(case):
    module, shape = CASES[case]
    found = check_rule(Conv(), module, torch.randn(shape))
    assert (found.status, found.spikes) == ("converted", "in")


def test_padding_with_values_is_kept():
    found = check_rule(Conv(), nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), torch.randn(2, 1, 5, 5))
    assert (found.status, found.spikes) == ("kept", "no")
    assert found.note == "pads with 'reflect'; only zeros are silent"
    assert context().convert.__doc__


def test_a_convolution_without_a_module_says_why_it_stays():
    assert "an nn.Conv in its place" in Conv().lift(F.conv_transpose2d, (), {})
    assert Conv().lift(F.linear, (), {}) is None
