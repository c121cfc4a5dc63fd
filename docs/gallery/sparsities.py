"""Three things called sparsity.

Silent fraction, spikes per channel and slot sparsity of the same counts: only the first saves weight rows.
"""

import torch
from figure import BLUE, GREEN, ORANGE, new, save

from fastsnn_core import create

torch.manual_seed(0)
x = torch.randn(1, 64, 256)
ks = (0.25, 0.5, 1, 2, 3, 5, 8)
found = [create("neuron", "adaptive_threshold", k=float(k)).build(256)(x)[0].sparsity() for k in ks]
figure = new()
axes = figure.add_subplot(xlabel="k, mean count per channel", xscale="log")
axes.plot(ks, [s.silent_fraction for s in found], "o-", color=BLUE, label="silent fraction")
axes.plot(ks, [s.slot_sparsity for s in found], "o-", color=GREEN, label="slot sparsity")
axes.plot(ks, [s.spikes_per_channel for s in found], "o-", color=ORANGE, label="spikes per channel")
axes.set_xticks(ks, [f"{k:g}" for k in ks])
axes.minorticks_off()
axes.legend(frameon=False)
save(figure, __file__)
