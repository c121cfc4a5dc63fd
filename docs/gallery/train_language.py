"""Train a spiking language model.

Loss and silence while a model of 60,000 parameters learns Python's documentation, byte by byte.
"""

import torch
from figure import BLUE, ORANGE, new, save

from fastsnn import FastSNN

torch.manual_seed(0)
model = FastSNN.build("snn-tiny", d_model=48, d_ff=96, n_layers=2, n_heads=2)
run = FastSNN.fit(model, "builtin:pydoc", seq_len=96, max_steps=60, batch_size=8, lr=6e-3, log_every=4, quiet=True)
rows = [r for r in run.history if "loss" in r]
figure = new()
axes = figure.add_subplot(xlabel="step", ylabel="loss in nats per byte")
axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], color=BLUE)
other = axes.twinx()
other.plot([r["step"] for r in rows], [100 * r["silent"] for r in rows], color=ORANGE)
other.set_ylabel("silent channels, %", color=ORANGE)
save(figure, __file__)
