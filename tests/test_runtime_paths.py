"""Which way each layer went: rows per phase, the kernels' own reasons, and what the command prints of them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fastsnn_core import build, create, ops, save
from fastsnn_core.cli import main
from fastsnn_events import runtime
from fastsnn_integer.quantization import Quant, quantise
from fastsnn_scope_paths import runtime_paths


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(create("model", "decoder", d_model=32, n_layers=2, n_heads=2, vocab_size=17)).eval()


def test_float_layers_and_the_head(model):
    found = runtime_paths.of_model(model, model.spec.example(2))
    assert set(found) == {"prompt", "token"}
    rows = {row.layer: row for row in found["token"]}
    assert rows["layers.0.attention.q"].path == "torch, dense on counts"
    assert rows["layers.0.attention.q"].rows == 1
    assert found["prompt"][0].rows == 11
    assert not any(handles for m in model.modules() for handles in (m._forward_hooks,)), "hooks stay behind"


def test_integer_layers_say_why(model):
    pytest.importorskip("fastsnn_kernel_numba")
    net = quantise(model)
    many = torch.randint(0, 17, (1, 65))
    found = {phase: {row.layer: row for row in rows} for phase, rows in runtime_paths.of_model(net, many).items()}
    token, prompt = found["token"]["layers.1.feedforward.down"], found["prompt"]["layers.1.feedforward.down"]
    assert (token.path, prompt.path) == ("numba: events", "numba: dense")
    assert "fewer than 7 events per input" in token.why
    assert "7 events per input or more" in prompt.why
    assert token.events_per_input < 1 < 7 < prompt.events_per_input
    assert "output-major" in found["token"]["embed"].why
    assert "counts of 8 bits" in found["token"]["embed"].why
    with ops.use("naive"):
        rows = runtime_paths.ways(net, many)[0]
    assert {row.path for row in rows} == {"naive"}
    assert all("no compiled kernel" in row.why for row in rows)
    net.runtime("event", steps=9)
    rows = runtime_paths.of_model(net, many)["token"]
    assert "one product per spike step, 9 in all" in rows[0].why
    assert runtime.mode_of(net) == "event"


def test_the_fused_step_is_named_or_why_there_is_none(model):
    tokens = model.spec.example(2)
    why = runtime_paths.fused_step_path(model, tokens)
    assert why["kernel"] is None
    assert "float weights" in why["why"]
    assert "layer by layer" in runtime_paths.says(why)
    assert runtime_paths.fused_step_path(nn.Identity(), torch.zeros(1, 2)) is None
    pytest.importorskip("fastsnn_kernel_numba")
    assert runtime_paths.fused_step_path(quantise(model), tokens)["kernel"] == "numba"


def test_other_layers():
    torch.manual_seed(0)
    site = nn.Sequential(build_site(), nn.Conv1d(4, 3, 2))
    (row,), _ = runtime_paths.ways(site, torch.randn(2, 4, 6))
    assert (row.path, row.outputs, row.rows) == ("torch, dense", 3, 0)
    rows, _ = runtime_paths.ways(quantise(dense_head(), Quant(head=False)), torch.randint(0, 17, (1, 3)))
    assert rows[-1].path == "torch, row by row"


def build_site():
    return nn.Identity()


def dense_head():
    return build(create("model", "decoder", d_model=16, n_layers=1, n_heads=2, vocab_size=17, tied=False)).eval()


def test_the_command(model, tmp_path, capsys):
    path = save(quantise(model), tmp_path / "q.snn")
    assert main(["show", "kernels", str(path)]) == 0
    out = capsys.readouterr().out
    assert "prompt:" in out
    assert "layers.*.attention.q × 2" in out
    assert main(["show", "kernels", str(path), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {"layer", "rows", "active", "path", "why"} <= set(layers["token"][0])
    assert main(["show", "lif", str(path)]) == 2
