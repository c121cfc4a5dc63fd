"""A signal as its changes.

The delta coder sends a spike where a signal has moved by one threshold, and nothing where it rests.
"""

import torch
from figure import BLUE, GREY, ORANGE, new, save

from fastsnn_core import create

t = torch.linspace(0, 1, 200)
signal = (torch.sin(9 * t) * (t < 0.6) + torch.sin(torch.tensor(5.4)) * (t >= 0.6))[None, :, None]
spikes = create("coder", "delta").encode(signal)
counts = spikes.counts[0, :, 0]
figure = new()
axes = figure.add_subplot(xlabel="time")
axes.plot(t, signal[0, :, 0], color=GREY)
for sign, colour in ((1, BLUE), (-1, ORANGE)):
    at = (counts * sign > 0).nonzero().flatten()
    axes.scatter(t[at], signal[0, at, 0], s=14, color=colour)
axes.set_title(f"{int((counts != 0).sum())} of 200 steps spike", loc="left")
save(figure, __file__)
