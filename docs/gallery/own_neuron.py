"""A neuron of one's own.

Thirty lines are a plugin: this neuron tires, so that a steady input is answered ever more rarely.
"""

import torch
from attrs import frozen
from figure import BLUE, ORANGE, new, save

from fastsnn_core import Neuron, SpikeTensor, ops, param


@frozen
class Tiring(Neuron):
    """c_t = round(x_t / θ_t); θ_{t+1} = rest + decay (θ_t - rest) + cost |c_t|. State θ [B,D]."""

    name = "tiring"
    cost: float = param(1.0, ge=0.0, le=100.0, doc="what a spike adds to the threshold")
    decay: float = param(0.95, ge=0.0, lt=1.0, doc="what stays of it after a step")

    def build(self, features):
        return TiringModule(self.cost, self.decay)


class TiringModule(torch.nn.Module):
    """``(x [B,T,D], θ) -> (spikes, θ)``."""

    def __init__(self, cost, decay):
        super().__init__()
        self.cost, self.decay = cost, decay

    def forward(self, x, state=None, reset=None):
        theta = x.new_ones(x.shape[0], x.shape[2]) if state is None else state
        counts, thetas = [], []
        for t in range(x.shape[1]):
            counts.append(ops.count(x[:, t] / theta, 0, 15, slope=torch.ones_like))
            thetas.append(theta)
            theta = 1 + self.decay * (theta - 1) + self.cost * counts[-1].detach().abs()
        return SpikeTensor(torch.stack(counts, 1), torch.stack(thetas, 1)), theta


x = torch.full((1, 60, 1), 4.0)
spikes, _ = Tiring().build(1)(x)
figure = new()
axes = figure.add_subplot(xlabel="time step")
axes.step(range(60), spikes.counts[0, :, 0], color=BLUE, label="spikes")
axes.plot(spikes.scale[0, :, 0], color=ORANGE, label="threshold")
axes.legend(frameon=False)
save(figure, __file__)
