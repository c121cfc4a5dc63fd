"""Streaming is exact.

A text in one piece, token by token, or cut anywhere: an INT8 model gives the same bits, a float one rounds.
"""

import torch
from figure import BLUE, ORANGE, new, save, trained

from fastsnn import FastSNN

model = trained()
small = FastSNN.load(FastSNN.export(model, "stream.snn", to="w8a"))
tokens = torch.randint(0, 256, (1, 48), generator=torch.Generator().manual_seed(0))
figure = new()
axes = figure.add_subplot(xlabel="where the text was cut", ylabel="largest difference of a logit")
for name, net, colour in (("float32", model, ORANGE), ("INT8", small, BLUE)):
    with torch.no_grad():
        whole, differences = net(tokens), []
        for cut in range(4, 48, 4):
            first, state = net(tokens[:, :cut], return_state=True)
            pieces = torch.cat([first, net(tokens[:, cut:], state)], 1)
            differences.append(float((pieces - whole).abs().max()))
    axes.plot(range(4, 48, 4), differences, "o-", color=colour, label=f"{name}: at most {max(differences):.2g}")
axes.legend(frameon=False)
save(figure, __file__)
