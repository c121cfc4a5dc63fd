"""Bundle surgery.

A bundle is a spec and named tensors, so layers can be taken out: what the loss rises by shows what each one is worth.
"""

import attrs
import torch
from figure import BLUE, GREY, new, save
from torch.nn.functional import cross_entropy

from fastsnn import FastSNN
from fastsnn_core import build

torch.manual_seed(0)
model = FastSNN.build("snn-tiny", d_model=48, d_ff=96, n_layers=4, n_heads=2, attn="gla")
FastSNN.fit(model, "builtin:pydoc", seq_len=96, max_steps=60, batch_size=8, lr=6e-3, quiet=True)
whole = FastSNN.load(FastSNN.export(model, "whole.snn"))
text = torch.tensor([list(str(torch.nn.Linear.__doc__).encode())[:400]])


def loss(net):
    """Nats per byte of a text that was not trained on."""
    with torch.no_grad():
        return float(cross_entropy(net.eval()(text[:, :-1]).flatten(0, 1), text[0, 1:]))


def without(gone):
    """The same model with one layer less, saved and loaded as a bundle of its own."""
    spec = attrs.evolve(whole.spec, n_layers=3)
    kept = [n for n in range(4) if n != gone]
    smaller, weights = build(spec), whole.state_dict()
    moved = {f"layers.{new}.": f"layers.{old}." for new, old in enumerate(kept)}
    found = {}
    for name in smaller.state_dict():
        prefix = ".".join(name.split(".")[:2]) + "."
        found[name] = weights[name.replace(prefix, moved.get(prefix, prefix), 1)]
    smaller.load_state_dict(found)
    return FastSNN.load(FastSNN.export(smaller, f"without{gone}.snn"))


begin = loss(whole)
rises = [loss(without(n)) - begin for n in range(4)]
figure = new(6, 3)
axes = figure.add_subplot(xlabel="layer taken out", ylabel="loss added (nats per byte)")
axes.bar([str(n) for n in range(4)], rises, color=BLUE)
axes.axhline(0, color=GREY, linewidth=0.8)
save(figure, __file__)
