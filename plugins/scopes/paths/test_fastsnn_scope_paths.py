"""The conformance kit over this plugin, and that its rows say what the kernels did."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from fastsnn_core import build, create, ops
from fastsnn_core.subject import Subject, observe
from fastsnn_core.testing import conformance
from fastsnn_integer.quantization import quantise
from fastsnn_scope_paths import Paths, layer_role

test_paths = conformance("paths")


def seen(*, naive: bool = False, **changes):
    torch.manual_seed(0)
    table = {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 17} | changes
    model = quantise(build(create("model", "decoder", **table)).eval())
    subject = observe(model, torch.randint(0, 17, (1, 60)))
    if naive:
        with ops.use("naive"):
            return Paths().measure(subject)
    return Paths().measure(subject)


def test_a_prompt_is_dense_and_a_token_is_events():
    pytest.importorskip("fastsnn_kernel_numba")
    data = json.loads(json.dumps(seen()))
    token = {row["layer"]: row for row in data["phases"]["token"]}
    prompt = {row["layer"]: row for row in data["phases"]["prompt"]}
    assert token["layers.1.attention.q"]["path"] == "numba: events"
    assert prompt["layers.1.attention.q"]["path"] == "numba: dense"
    assert prompt["layers.1.attention.q"]["rows"] == 59
    assert prompt["layers.1.attention.q"]["events_per_input"] > 7 > token["layers.1.attention.q"]["events_per_input"]
    (headline,) = data["headline"]
    assert headline == ["layers by events, decoding", f"{len(token) - 1} of {len(token)}"]
    figure = Figure(layout="constrained")
    Paths().draw(data, figure)
    figure.canvas.draw()


def test_without_a_kernel_that_is_said():
    assert {row["path"] for row in seen(naive=True)["phases"]["token"]} == {"naive"}


def test_nothing_weighted():
    data = Paths().measure(Subject(nn.Identity(), torch.zeros(1, 3), {}))
    assert data == {"reason": "the model has no weighted layers"}
    Paths().draw(data, Figure())


def test_lines_of_the_picture():
    assert layer_role("layers.3.attention.q") == "attention.q"
    assert layer_role("embed") == "embed"
    assert layer_role("layers.0") == "layers.0"
