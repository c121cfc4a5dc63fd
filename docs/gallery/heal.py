"""Heal a coarse conversion.

One spike step alone is rough; some training against the dense network's outputs repairs most of it.
"""

import torch
from figure import BLUE, ORANGE, new, save

from fastsnn_convert import convert

torch.manual_seed(0)
ann = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
data = torch.randn(256, 16)
figure = new()
axes = figure.add_subplot(xlabel="spike steps S", ylabel="error of the outputs, relative")
for heal, colour in ((0, BLUE), (100, ORANGE)):
    made = [convert(ann, calibration=data, steps=s, heal_steps=heal).report for s in (1, 2, 3)]
    errors = [report["quality"]["output_error"] for report in made]
    axes.plot((1, 2, 3), errors, "o-", color=colour, label=f"after {heal} steps of training")
axes.legend(frameon=False)
save(figure, __file__)
