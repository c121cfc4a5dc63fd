"""Memory of a long context.

A gated linear layer keeps a state of one size, a window fills up and stays, a softmax cache grows with every token.
"""

import torch
from figure import new, save

from fastsnn import FastSNN
from fastsnn_core.state import nbytes

lengths = (32, 64, 128, 256, 512)
figure = new()
axes = figure.add_subplot(xlabel="tokens read", ylabel="state of one stream, kB", xscale="log", yscale="log")
for attn in ("gla", "sliding_window", "softmax"):
    torch.manual_seed(0)
    options = {"window": 128} if attn == "sliding_window" else {}
    model = FastSNN.build("snn-tiny", attn, d_model=48, d_ff=96, n_layers=2, n_heads=2, **options).eval()
    with torch.no_grad():
        states = [model(torch.zeros(1, n, dtype=torch.long), return_state=True)[1] for n in lengths]
    axes.plot(lengths, [nbytes(s) / 1e3 for s in states], "o-", label=attn)
axes.set_xticks(lengths, [str(n) for n in lengths])
axes.minorticks_off()
axes.legend(frameon=False)
save(figure, __file__)
