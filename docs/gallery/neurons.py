"""Neurons side by side.

The same noisy input through six neurons: some spike once, some count, some adapt.
"""

import torch
from figure import BLUE, ORANGE, new, save

from fastsnn_core import create

torch.manual_seed(0)
x = (torch.randn(1, 60, 24).cumsum(1) / 3).clamp(-4, 4)
names = ("lif", "plif", "synaptic", "alif", "lif_sint", "adaptive_threshold")
figure = new(8, 4.6)
for axes, name in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, names):
    with torch.no_grad():
        counts = create("neuron", name).build(24).eval()(x)[0].counts[0].T
    for sign, colour in ((1, BLUE), (-1, ORANGE)):
        c, t = (counts * sign > 0).nonzero().T
        axes.scatter(t, c, s=2 + 3 * counts[c, t].abs(), color=colour, linewidths=0)
    axes.set_title(f"{name}: {float((counts == 0).float().mean()):.0%} silent", fontsize=9, loc="left")
figure.supxlabel("time step")
figure.supylabel("channel")
save(figure, __file__)
