"""The conformance kit over this plugin; each readout is what it says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastsnn_core.testing import conformance
from fastsnn_objective_cross_entropy import CrossEntropy

test_cross_entropy = conformance("cross_entropy")


@pytest.mark.parametrize(
    ("readout", "by_hand"),
    [
        ("mean", lambda o: o.mean(1)),
        ("last", lambda o: o[:, -1]),
        ("max", lambda o: o.max(1).values),
        ("sum", lambda o: o.sum(1)),
    ],
)
def test_a_readout_is_the_definition(readout, by_hand):
    o, y = torch.randn(4, 5, 3), torch.tensor([0, 1, 2, 1])
    found = CrossEntropy(readout=readout).loss(o, y)
    torch.testing.assert_close(found, -by_hand(o).log_softmax(1)[range(4), y])


def test_every_step_is_scored():
    o, y = torch.randn(4, 5, 3), torch.tensor([0, 1, 2, 1])
    rows = torch.stack([F.cross_entropy(o[:, t], y, reduction="none") for t in range(5)])
    torch.testing.assert_close(CrossEntropy(readout="step").loss(o, y), rows.mean(0))
