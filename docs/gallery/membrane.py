"""The membrane of a leaky neuron.

A leaky integrate-and-fire neuron climbs with its input, spikes at the threshold and gives one threshold back.
"""

import torch
from figure import BLUE, GREY, ORANGE, new, save

from fastsnn_core import create

neuron = create("neuron", "lif", tau=6.0).build(1)
x = torch.zeros(1, 80, 1)
x[:, 8:60] = 0.32
with torch.no_grad():
    spikes = neuron(x)[0].counts[0, :, 0]
    u = neuron.membrane(x)[0, :, 0]
figure = new()
axes = figure.add_subplot(xlabel="time step", ylabel="membrane")
axes.plot(u, color=BLUE)
axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
axes.vlines(spikes.nonzero().flatten(), 1.0, float(u.max()) + 0.2, color=ORANGE)
axes.set_title(f"{int(spikes.sum())} spikes", loc="left")
save(figure, __file__)
