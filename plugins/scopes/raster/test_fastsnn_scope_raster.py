"""The conformance kit over this plugin, and what it says of spikes that can be counted by hand."""

from __future__ import annotations

import json

import torch
from matplotlib.figure import Figure
from torch import nn

from fastsnn_core import SpikeTensor
from fastsnn_core.probe import Record
from fastsnn_core.subject import Subject
from fastsnn_core.testing import conformance
from fastsnn_scope_raster import Raster, bitwise_spikes, sites_to_show, visible_token

test_raster = conformance("raster")

COUNTS = torch.tensor([[[0.0, 1.0, -3.0], [0.0, 0.0, 8.0]]])  # [B=1, T=2, D=3]


def subject(counts: torch.Tensor, labels: tuple[str, ...] = ()) -> Subject:
    record = Record(counts, SpikeTensor(counts, 0.5), nn.Identity())
    return Subject(nn.Identity(), torch.zeros(1, counts.shape[1], dtype=torch.long), {"a": record}, labels)


def test_counts_and_spikes_per_channel_by_hand():
    data = Raster().measure(subject(COUNTS, ("x", "y")))
    (site,) = data["sites"]
    assert data["axis"] == "token"
    assert data["labels"] == ["x", "y"]
    assert site["counts"] == [[0, 1, -3], [0, 0, 8]]
    assert site["spikes_per_channel"] == [1.0, round(1 / 3, 4)]  # 1 + two bits of 3; one bit of 8


def test_long_and_wide_inputs_are_cut_and_said_so():
    data = Raster(tokens=4, channels=5).measure(subject(torch.ones(1, 10, 20)))
    (site,) = data["sites"]
    assert len(site["counts"]) == 4
    assert site["channels"] == [0, 5, 10, 14, 19]
    assert data["notes"] == ["The first 4 of 10 tokens are shown.", "Channels are evenly spread samples: a 5 of 20."]


def test_images_show_positions_of_the_first_sample():
    data = Raster().measure(subject(torch.arange(24.0).reshape(1, 2, 3, 4)))
    assert data["axis"] == "position"
    assert data["sites"][0]["counts"][1] == [1, 13]


def test_bits_of_counts_and_of_trains():
    assert bitwise_spikes(SpikeTensor(torch.tensor([0.0, 5.0, -7.0]))).tolist() == [0, 2, 3]
    train = torch.tensor([[1, 0, -1], [1, 0, 0]])
    assert bitwise_spikes(SpikeTensor.from_train(train, torch.tensor([1, 1]))).tolist() == [2, 0, 1]


def test_sites_are_chosen_by_pattern_or_spread():
    names = [f"layers.{i}.in" for i in range(8)]
    assert sites_to_show(names, (), 4) == [names[i] for i in (0, 2, 5, 7)]
    assert sites_to_show(names, ("layers.[23].*",), 4) == names[2:4]
    assert "no site matches nothing" in Raster(sites=("nothing",)).measure(subject(COUNTS))["reason"]


def test_draws_from_json_with_awkward_labels():
    data = json.loads(json.dumps(Raster().measure(subject(COUNTS, ("$x_", "\n")))))
    figure = Figure()
    Raster().draw(data, figure)
    figure.canvas.draw()
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == ["$x_", "↵"]
    assert visible_token(" a") == "␣a"
    assert visible_token("\x00") == visible_token("\ufffd") == "·"
