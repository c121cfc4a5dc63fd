"""A converted projection lets code around it read its weights; what counts weights counts each once."""

from __future__ import annotations

import torch
from torch import nn

from fastsnn import FastSNN
from fastsnn_conversion.context import Encoded
from fastsnn_convert import convert
from fastsnn_scope.weights import matrices


class Branches(nn.Module):
    """Kept whole, since it depends on data; reads a weight of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        h = self.first(x.to(self.first.weight.dtype))
        if h.sum() > 1e9:
            h = -h
        return self.second(h)


def test_weights_behind_a_wrapper_are_counted_once():
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    model = convert(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Branches()).eval(), calibration=x).model
    wrapped = [m for m in model.modules() if isinstance(m, Encoded)]
    assert len(wrapped) == 2
    assert all(m.weight is m.module.weight and m.in_features == m.module.in_features for m in wrapped)
    places = [
        ("net.0", "net.input_1_spikes"),
        ("net.2.first.module", "net.2.first.site"),
        ("net.2.second.module", "net.2.second.site"),
    ]
    assert [(m.layer, m.site) for m in matrices(model, x)] == places
    layers = FastSNN.scope(model, tokens=x).data()["scopes"]["energy"]["data"]["layers"]
    assert [(row["name"], row["site"]) for row in layers] == places
    assert [row["macs"] for row in layers] == [64 * 8 * 8, 64 * 8 * 16, 64 * 16 * 4]
