"""How fine to count.

The threshold of an adaptive-threshold neuron is mean |x| / k: a larger k counts finer and leaves fewer channels silent.
"""

import torch
from figure import new, save

from fastsnn_core import create

torch.manual_seed(0)
x = torch.randn(1, 1, 400).sort().values
figure = new()
axes = figure.add_subplot(xlabel="input x", ylabel="value of the spikes, count × threshold")
axes.plot(x[0, 0], x[0, 0], color="#bbbbbb", linewidth=1)
for k in (0.5, 1.0, 3.0):
    spikes = create("neuron", "adaptive_threshold", k=k).build(400)(x)[0]
    axes.step(
        x[0, 0], spikes.value()[0, 0], label=f"k = {k:g}: {float((spikes.counts == 0).float().mean()):.0%} silent"
    )
axes.legend(frameon=False)
save(figure, __file__)
