"""Surrogates.

A spike has no derivative; each surrogate puts another curve in its place, and all are plugins.
"""

import torch
from figure import new, save

from fastsnn_core import create

u = torch.linspace(-2, 4, 400)
figure = new()
axes = figure.add_subplot(xlabel="membrane u, in thresholds", ylabel="stand-in for d count / d u")
for name in ("atan", "fast_sigmoid", "triangle", "window", "identity"):
    axes.plot(u, create("surrogate", name).derivative(u, 1.0, 1.0), label=name)
axes.legend(frameon=False)
save(figure, __file__)
