"""Convert an ordinary network.

An MLP becomes a spiking one without training; its error falls with every further spike step.
"""

import torch
from figure import BLUE, new, save

from fastsnn_convert import convert

torch.manual_seed(0)
ann = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
data = torch.randn(256, 16)
steps = (1, 2, 3, 4, 5, 6)
errors = [convert(ann, calibration=data, steps=s).report["quality"]["output_error"] for s in steps]
figure = new()
axes = figure.add_subplot(xlabel="spike steps S", ylabel="error of the outputs, relative", yscale="log")
axes.plot(steps, errors, "o-", color=BLUE)
save(figure, __file__)
