"""The conformance kit over this plugin; the published formula."""

from __future__ import annotations

import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_fast_sigmoid = conformance("fast_sigmoid")


def test_it_is_the_published_formula():
    u = torch.tensor([0.0, 1.0, 1.5], dtype=torch.float64)
    found = create("surrogate", "fast_sigmoid", slope=25.0).derivative(u, 1.0, 1.0)
    torch.testing.assert_close(found, 1 / (1 + 25 * (u - 1).abs()) ** 2)  # snntorch.surrogate.fast_sigmoid(slope=25)
