"""To NIR and back.

A network is written as NIR, the exchange format of spiking toolkits, and read again: every spike is the same.
"""

import torch
from figure import BLUE, ORANGE, new, save

from fastsnn import FastSNN
from fastsnn_convert import convert
from fastsnn_core import build, spec

SPEC = """
fastsnn = 1
[model]
kind = "sequential"
input = [8]
layers = [
    { op = "linear", size = 32 },
    { op = "spikes", neuron = { kind = "lif", tau = 4.0, threshold = 0.1, hard_reset = true, fixed = true } },
    { op = "linear", size = 24 },
    { op = "spikes", neuron = { kind = "lif", tau = 4.0, threshold = 0.1, hard_reset = true, fixed = true } },
]
"""
torch.manual_seed(0)
net = build(spec.loads(SPEC).model).eval()
FastSNN.export(net, "network.nir", to="nir")
back = convert("network.nir", dt=1e-4).model.eval()
x = torch.rand(1, 60, 8, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    here, there = net(x)[0] > 0, back(x)[0] > 0
assert torch.equal(here, there)
figure = new()
axes = figure.add_subplot(xlabel="step", ylabel="neuron", title=f"{int(here.sum())} spikes, all equal")
axes.scatter(*here.nonzero().T, s=44, facecolors="none", edgecolors=BLUE, label="before")
axes.scatter(*there.nonzero().T, s=8, color=ORANGE, label="after the round trip")
figure.legend(loc="outside lower center", ncols=2, frameon=False)
save(figure, __file__)
