"""Values as times.

Rate coding spends many spikes on a bright pixel; latency coding spends one, and the brighter pixel spikes first.
"""

import torch
from figure import new, save

from fastsnn_core import create

torch.manual_seed(0)
values = torch.linspace(0.05, 1, 24)
figure = new(7, 3.4)
for axes, name in zip(figure.subplots(1, 2, sharey=True), ("rate", "latency")):
    spikes = create("coder", name, steps=16).encode(values)
    t, c = spikes.train.nonzero().T
    axes.scatter(t, values[c], s=14, color="#0072b2")
    axes.set(xlabel="spike step", title=f"{name}: {len(t)} spikes")
figure.axes[0].set_ylabel("value")
save(figure, __file__)
