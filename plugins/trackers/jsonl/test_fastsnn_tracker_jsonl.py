"""The conformance kit over this plugin, and what stands in the file."""

from __future__ import annotations

import json

import torch

from fastsnn_core import Run
from fastsnn_core.testing import conformance
from fastsnn_tracker_jsonl import Jsonl

test_jsonl = conformance("jsonl")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_log_has_every_step_once(tmp_path):
    run = Run(torch.nn.Identity(), tmp_path)
    session = Jsonl().start(run)
    for n in (1, 2, 3):
        session.log({"step": n, "loss": 0.1 * n})  # killed here: no end
    again = Jsonl().start(Run(torch.nn.Identity(), tmp_path, history=[{"step": 1, "loss": 0.1}]))
    again.log({"step": 2, "loss": 0.25})
    again.end(None)
    assert rows(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.25}]


def test_the_log_of_an_earlier_run_is_kept(tmp_path):
    for loss in (1.0, 2.0, 3.0):
        session = Jsonl().start(Run(torch.nn.Identity(), tmp_path))
        session.log({"step": 1, "loss": loss})
        session.end(None)
    found = {p.name: rows(p)[0]["loss"] for p in tmp_path.iterdir()}
    assert found == {"log-1.jsonl": 1.0, "log-2.jsonl": 2.0, "log.jsonl": 3.0}
