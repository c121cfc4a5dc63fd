"""The conformance kit over this plugin; when it stops, and when not."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import Run
from fastsnn_core.testing import conformance
from fastsnn_tracker_early_stopping import EarlyStopping

test_early_stopping = conformance("early_stopping")


@pytest.mark.parametrize(
    ("how", "values", "stops_after"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.5, 2.0], 4),
        ({"patience": 2}, [3.0, 2.0, 2.5, 1.9], None),
        ({"patience": 1, "figure": "accuracy", "largest": True}, [0.5, 0.6, 0.6], 3),
        ({"patience": 1, "least": 0.1}, [1.0, 0.95], 2),
        ({"patience": 1, "least": 0.1}, [1.0, 0.85], None),
    ],
)
def test_it_stops_where_nothing_gets_better(how, values, stops_after):
    tracker = EarlyStopping(**how)
    run = Run(torch.nn.Identity())
    session = tracker.start(run)
    for n, value in enumerate(values, 1):
        row = {"step": n, tracker.figure: value}
        run.history += [{"step": n, "loss": 9.0}, row]
        session.log(run.history[-2])
        session.log(row)
        assert bool(run.stopping) == (n == stops_after), (n, run.stopping)
