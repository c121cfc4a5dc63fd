"""Probes: off, nothing is hooked and nothing is computed; on, they compute nothing of their own; the bound is said."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest
import torch
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from fastsnn_core import build, save
from fastsnn_core.probe import probe
from fastsnn_scope import scope
from fastsnn_scope.command import main
from fastsnn_scope.page import cost
from fastsnn_scope.speed import LIMIT, probe_cost, says_cost

decoder = pytest.importorskip("fastsnn_model_decoder").Decoder
IDS = torch.arange(48)[None] + 65
CHEAP = {
    "aten.detach.default",
    "aten.alias.default",
    "aten.lift_fresh.default",
}  # views, and a Python number as a tensor


class Operations(TorchDispatchMode):
    """How often each operator of torch ran."""

    def __init__(self):
        super().__init__()
        self.ran = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ran[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(decoder(d_model=32, n_layers=2, n_heads=2)).eval()


def hooks(model):
    """Everything that torch would call beside the modules themselves."""
    tables = [name for name in vars(torch.nn.Linear(1, 1)) if name.endswith("_hooks")]
    assert "_forward_hooks" in tables
    found = [(n, t) for n, m in model.named_modules() for t in tables if m.__dict__.get(t)]
    found += [("everywhere", t) for t in vars(torch_module) if t.startswith("_global") and t.endswith("hooks")
              and getattr(torch_module, t)]  # fmt: skip
    return found + [(n, "forward") for n, m in model.named_modules() if "forward" in m.__dict__]


@torch.no_grad()
def ran(model):
    with Operations() as seen:
        out = model(IDS)
    return out, seen.ran


def test_off_costs_nothing(model, tmp_path):
    wanted, before = ran(model)
    scope(model, tokens=IDS).report(tmp_path / "report")
    with pytest.raises(RuntimeError), probe(model):
        raise RuntimeError
    assert hooks(model) == []
    found, after = ran(model)
    assert after == before, "a model that was looked at runs the operators of one that was not"
    assert torch.equal(found, wanted)


def test_on_nothing_is_computed(model):
    wanted, bare = ran(model)
    with probe(model) as trace:
        assert hooks(model), "the next lines would prove nothing"
        found, watched = ran(model)
    assert torch.equal(found, wanted)
    assert watched == bare, watched - bare
    assert len(trace) >= 8


def test_only_what_can_make_spikes_is_watched(model):
    """A hook on every module of torch cost a tenth of a small model's step."""
    own = [n for n, m in model.named_modules() if type(m).__module__.startswith("torch.nn.modules.")]
    with probe(model):
        watched = {name for name, table in hooks(model) if table == "_forward_hooks"}
    assert len(own) > 10
    assert watched.isdisjoint(own)
    replaced = model.layers[0].feedforward.down
    replaced.forward = type(replaced).forward.__get__(replaced)  # whoever writes a forward may make spikes in it
    with probe(model):
        assert ("layers.0.feedforward.down", "_forward_hooks") in hooks(model)


def test_with_gradients_records_hold_no_graph(model):
    model.train()
    with probe(model) as trace:
        model(IDS).sum().backward()
    assert all(not r.x.requires_grad and not r.spikes.requires_grad for r in trace.values())


def test_the_cost_is_measured_and_the_bound_is_said(model, tmp_path, capsys):
    found = probe_cost(model, IDS)
    assert found["limit"] == LIMIT == 0.10
    assert found["share"] == pytest.approx(found["on_ms"] / found["off_ms"] - 1, abs=0.01)
    assert found["clock"] == "processor"
    told = {"off_ms": 10.0, "on_ms": 12.0, "share": 0.2, "runs": 3, "limit": LIMIT}
    assert says_cost(told) == "a pass takes 12 ms watched, 10 ms not (+20.0%, over the bound of 10%)"
    long = told | {"off_ms": 2340.2, "on_ms": 2433.8, "share": 0.04, "clock": "processor"}
    wanted = "a pass takes 2,434 ms of processor time watched, 2,340 ms not (+4.0%, within the bound of 10%)"
    assert says_cost(long) == wanted
    assert "+20.0%, over the bound of 10%" in cost({"probes": told})
    bundle = save(model, tmp_path / "m.snn")
    assert main([str(bundle), "--text", "a neuron was silent", "--scope", "raster", "--out", str(tmp_path / "r")]) == 0
    said = capsys.readouterr().err
    assert "the bound of 10%)" in said
    assert "probes: a pass takes" in said
    took = json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8"))["took"]
    assert {"the spikes", "raster", "drawing raster", "timing the probes"} <= set(took)


def test_what_looking_costs_does_not_count_other_programs(model, monkeypatch):
    """A pass during which this process stood still is no dearer."""
    bare = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **more: (time.sleep(0.05), bare(*args, **more))[1])
    assert probe_cost(model, IDS)["off_ms"] < 50.0
