"""The conformance kit over this plugin; the published formula."""

from __future__ import annotations

import torch

from fastsnn_core import create
from fastsnn_core.testing import conformance

test_triangle = conformance("triangle")


def test_it_is_the_published_formula():
    u = torch.tensor([-0.5, 0.5, 1.0, 1.25, 2.5], dtype=torch.float64)
    found = create("surrogate", "triangle").derivative(u, 1.0, 1.0)
    torch.testing.assert_close(found, 0.3 * (1 - (u - 1).abs()).clamp_min(0))
