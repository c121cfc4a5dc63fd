"""Convert a language model.

A dense language model becomes a spiking one in one call: a larger k counts finer, so less is lost and less is silent.
"""

import torch
from figure import BLUE, new, save

from fastsnn import FastSNN
from fastsnn_convert import convert

torch.manual_seed(0)
dense = FastSNN.build("snn-tiny", d_model=48, d_ff=96, n_layers=2, n_heads=2, attn="softmax", sites=())
FastSNN.fit(dense, "builtin:pydoc", seq_len=96, max_steps=60, batch_size=8, lr=6e-3, quiet=True)
FastSNN.export(dense, "dense", to="llama")  # any directory of a Llama or Qwen, or a GGUF file, is converted alike
words = "".join(str(vars(torch.nn)[name].__doc__) for name in ("LSTM", "GRU", "Conv2d", "Transformer", "LayerNorm"))
tokens = torch.tensor(list(words.encode()))  # a directory with a tokenizer takes text
rows = []
for k in (1.0, 2.0, 4.0, 8.0):
    quality = convert("dense", k=k, calibration=tokens, quiet=True).report["quality"]
    rows.append((k, quality["ratio"], 100 * quality["silent_fraction"]))
figure = new()
axes = figure.add_subplot(xlabel="silent channels (%)", ylabel="perplexity, dense = 1")
axes.plot([r[2] for r in rows], [r[1] for r in rows], "o-", color=BLUE)
for k, ratio, silent in rows:
    axes.annotate(f"k = {k:g}", (silent, ratio), xytext=(6, 6), textcoords="offset points")
save(figure, __file__)
