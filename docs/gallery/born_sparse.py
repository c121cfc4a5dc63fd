"""Born sparse.

A ReLU gate and a small L1 term silence most hidden channels while the model learns; the loss hardly notices.
"""

import torch
from figure import BLUE, ORANGE, new, save

from fastsnn import FastSNN

figure = new(8, 3.4)
left, right = figure.subplots(1, 2)
for name, l1, colour in (("SiLU", 0.0, BLUE), ("ReLU and L1", 1.0, ORANGE)):
    torch.manual_seed(0)
    gate = {"kind": "pulse", "activation": "silu" if not l1 else "relu"}
    model = FastSNN.build("snn-tiny", d_model=48, d_ff=96, n_layers=2, n_heads=2, feedforward=gate)
    settings = {"seq_len": 96, "max_steps": 60, "batch_size": 8, "lr": 6e-3, "log_every": 4, "quiet": True}
    run = FastSNN.fit(model, "builtin:pydoc", **settings, l1=l1)
    rows = [r for r in run.history if "loss" in r]
    steps = [r["step"] for r in rows]
    left.plot(steps, [r["loss"] for r in rows], color=colour, label=name)
    right.plot(steps, [100 * sum(r["silent_sites"].values()) / len(r["silent_sites"]) for r in rows], color=colour)
left.set(xlabel="step", ylabel="loss in nats per byte")
right.set(xlabel="step", ylabel="silent hidden channels, %")
left.legend(frameon=False)
save(figure, __file__)
