"""A conversion rule of one's own.

A layer that no rule knows is kept dense; ten lines teach the converter, and it spikes.
"""

import torch
from attrs import frozen
from figure import BLUE, ORANGE, new, save

from fastsnn_convert import convert
from fastsnn_core import Rule, hookimpl
from fastsnn_core.plugins import add_module


class Bell(torch.nn.Module):
    """exp(-x²)."""

    def forward(self, x):
        return torch.exp(-x * x)


@frozen
class BellRule(Rule):
    """s = spikes(exp(-x²))."""

    name = "bell"
    covers = ("gallery.Bell",)

    def matches(self, module):
        return isinstance(module, Bell)

    def convert(self, module, context):
        return context.spike(module, "spikes of exp(-x²)")


class Plugin:
    """Offers the rule."""

    @staticmethod
    @hookimpl
    def fastsnn_rules():
        return [BellRule]


torch.manual_seed(0)
ann = torch.nn.Sequential(torch.nn.Linear(8, 64), Bell(), torch.nn.Linear(64, 2))
data = torch.randn(128, 8)
add_module(Plugin(), "gallery")
done = convert(ann, calibration=data, steps=4)
with torch.no_grad():
    dense, spiking = ann(data)[:, 0], done.model(data)[:, 0]
figure = new(4.6, 4)
axes = figure.add_subplot(xlabel="dense output", ylabel="spiking output")
axes.plot(dense, dense, color=ORANGE, linewidth=1)
axes.scatter(dense, spiking, s=8, color=BLUE)
save(figure, __file__)
