"""Counts and events are the same numbers.

A model trained on counts runs on spike trains with the same bits; each site needs its own number of steps.
"""

import torch
from figure import BLUE, new, save, trained

from fastsnn_events import runtime

model = trained()
tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    wanted = model(tokens)
    model.runtime("event", coder="bitwise", steps="auto", calibration=tokens)
    assert torch.equal(model(tokens), wanted)
rows = runtime.report(model)
model.runtime("count")
figure = new(7.5, 3.4)
axes = figure.add_subplot(xlabel="spike steps of the bitwise coder (bits of the largest count and its sign)")
axes.barh(list(rows), [row["steps"] for row in rows.values()], color=BLUE)
axes.tick_params(axis="y", labelsize=8)
axes.invert_yaxis()
save(figure, __file__)
