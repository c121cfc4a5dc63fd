"""Coders.

One row of counts from −5 to 5 as spike trains: each coder needs another number of steps and of spikes.
"""

import torch
from figure import new, save

from fastsnn_core import SpikeTensor, create

counts = torch.arange(-5, 6)
figure = new(8, 4.4)
for axes, name in zip(figure.subplots(2, 2).flat, ("binary", "ternary", "bitwise", "twos_complement")):
    coder = create("coder", name)
    row = counts if coder.signed else counts.clamp_min(0)
    spikes = coder.encode(SpikeTensor(row), coder.steps_for(5))
    axes.imshow(spikes.train.tolist(), cmap="RdBu", vmin=-1.5, vmax=1.5, aspect="auto")
    axes.set_xticks(range(11), [str(int(c)) for c in row], fontsize=8)
    axes.set_yticks(range(len(spikes.train)))
    axes.set_title(f"{name}: {len(spikes.train)} steps, {int(spikes.train.abs().sum())} spikes", fontsize=9, loc="left")
figure.supxlabel("count")
figure.supylabel("spike step")
save(figure, __file__)
