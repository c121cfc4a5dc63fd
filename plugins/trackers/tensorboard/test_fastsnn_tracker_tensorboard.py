"""The conformance kit over this plugin, and what TensorBoard reads back."""

from __future__ import annotations

import sys

import pytest
import torch

from fastsnn_core import Run
from fastsnn_core.testing import conformance
from fastsnn_tracker_tensorboard import TensorBoard

pytest.importorskip("tensorboard")
test_tensorboard = conformance("tensorboard")


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_scalars_read_back_and_a_resume_hides_what_came_after(tmp_path):
    session = TensorBoard().start(Run(torch.nn.Identity(), tmp_path))
    for n in (1, 2, 3):
        session.log({"step": n, "loss": n / 4, "gradient": {"layers.0": 0.5}, "flags": ["text"], "done": True})
    session.saved(tmp_path)
    again = TensorBoard().start(Run(torch.nn.Identity(), tmp_path, history=[{"step": 1, "loss": 0.25}]))
    again.log({"step": 2, "loss": 9.0})
    again.end(None)
    found = read(tmp_path / "tensorboard")
    assert found == {"loss": [(1, 0.25), (2, 9.0)], "gradient/layers.0": [(1, 0.5)]}


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoard().start(Run(torch.nn.Identity(), tmp_path))
