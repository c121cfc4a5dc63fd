"""A picture shown for some steps.

Pixels become random spikes, so a classifier knows more after every step: its accuracy on drawn digits, step by step.
"""

import torch
from figure import BLUE, new, save

from fastsnn import FastSNN
from fastsnn_train.samples.of_model import samples_of

torch.manual_seed(0)
coder = {"kind": "rate", "how": "bernoulli"}
net = FastSNN.build(arch="snn-mlp", input=(1, 28, 28), classes=10, time_steps=8, widths=(128,), coder=coder)
FastSNN.fit(net, dataset="builtin:segments", max_steps=120, batch_size=64, quiet=True)
x, y = samples_of(net, "builtin:segments", quiet=True).train.batch(list(range(300)))
with torch.no_grad():
    scores = net.eval()(x.reshape(-1, 1, 28, 28).float())
right = [float((scores[:, : t + 1].mean(1).argmax(1) == y).float().mean()) for t in range(8)]
figure = new()
axes = figure.add_subplot(xlabel="time steps shown", ylabel="accuracy", ylim=(0, 1.02))
axes.plot(range(1, 9), right, "o-", color=BLUE)
save(figure, __file__)
