"""The conformance kit over this plugin, and what it says of spikes that can be counted by hand."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from fastsnn_core import SpikeTensor
from fastsnn_core.probe import Record
from fastsnn_core.subject import Subject
from fastsnn_core.testing import conformance
from fastsnn_leaky.neurons import Leaky
from fastsnn_scope_sparsity import SparsityScope, layer_place

test_sparsity = conformance("sparsity")


def subject(module: nn.Module | None = None, **sites: list[list[float]]) -> Subject:
    trace = {}
    for name, rows in sites.items():
        counts = torch.tensor([rows])
        trace[name.replace("_", ".")] = Record(counts, SpikeTensor(counts), module or nn.Identity())
    return Subject(nn.Identity(), torch.zeros(1, 2, dtype=torch.long), trace)


def test_three_sparsities_by_hand():
    data = SparsityScope().measure(subject(layers_0_a=[[0, 0, 1, -3], [0, 0, 0, 4]]))
    (row,) = data["sites"]
    assert row["silent_fraction"] == 5 / 8
    assert row["spikes_per_channel"] == 4 / 8  # 1, two bits of 3, one bit of 4
    assert row["steps"] == 3
    assert row["slot_sparsity"] == pytest.approx(1 - 4 / 8 / 3)
    assert row["mean_count"] == 1.0
    assert row["largest"] == 4
    assert row["dead_channels"] == 0.5


def test_overall_weighs_sites_by_their_channels():
    data = SparsityScope().measure(subject(layers_0_a=[[0, 0, 0, 0]] * 3, layers_1_a=[[1, 1, 1, 1]]))
    assert data["overall"]["silent_fraction"] == pytest.approx(0.75)
    assert ["silent fraction", "75.0%"] in data["headline"]


def test_silent_and_saturated_sites_are_flagged():
    leaky = Leaky(beta=0.5, threshold=1.0, lo=0.0, hi=4.0)
    data = SparsityScope().measure(subject(leaky, layers_0_a=[[0, 0]], layers_1_a=[[4, 4]], layers_2_a=[[4, 1]]))
    assert [r["flag"] for r in data["sites"]] == ["silent", "saturated", ""]
    assert data["sites"][2]["at_limit"] == 0.5
    assert data["notes"] == ["layers.0.a is silent", "layers.1.a is saturated"]
    assert data["tables"][0]["columns"][-1] == ""
    unlimited = SparsityScope().measure(subject(layers_0_a=[[9, 9]]))
    assert unlimited["sites"][0]["at_limit"] is None
    assert unlimited["notes"] == ["No site is silent, none is saturated."]


def test_places_of_sites():
    assert layer_place("layers.3.attention.inner") == ("attention.inner", 3)
    assert layer_place("embed_site") == ("embed_site", -1)
    assert layer_place("4") == ("site", 4)


def test_draws_every_layer_and_frames_the_flagged():
    scope = SparsityScope()
    data = json.loads(json.dumps(scope.measure(subject(layers_0_a=[[0, 0]], layers_1_b=[[1, 2]], head=[[1, 1]]))))
    figure = Figure()
    scope.draw(data, figure)
    figure.canvas.draw()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "head"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["–", "0", "1"]
    assert all(len(axes.patches) == 1 for axes in figure.axes)
    deep = scope.measure(subject(**{f"layers_{i}_a": [[0, 1]] for i in range(20)}))
    figure = Figure(layout="constrained")
    scope.draw(deep, figure)
    figure.canvas.draw()
    assert len(figure.axes) == 8  # too many columns for numbers: a colour bar each
    assert not any(axes.texts for axes in figure.axes)
    assert scope.measure(subject()) == {"reason": "the model makes no spikes"}
