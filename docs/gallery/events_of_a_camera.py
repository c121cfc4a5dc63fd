"""Events of a camera.

A moving edge as an event camera sees it: only what changes is sent, brighter and darker apart.
"""

import numpy as np
from figure import new, save

from fastsnn_recordings import Events, frames

generator = np.random.default_rng(0)
t = np.sort(generator.integers(0, 9000, 4000))
edge = 4 + t / 9000 * 22
polarity = generator.integers(0, 2, 4000)
x = np.clip(np.round(edge + np.where(polarity, 1.0, -1.0) + generator.normal(0, 0.7, 4000)), 0, 31).astype(int)
seen = Events(t=t, x=x, y=generator.integers(0, 24, 4000), p=polarity, size=(24, 32))
pictures = frames(seen, steps=4)
figure = new(8, 2.6)
for n, axes in enumerate(figure.subplots(1, 4, sharey=True)):
    axes.imshow(np.asarray(pictures[n][1]) - np.asarray(pictures[n][0]), cmap="RdBu", vmin=-6, vmax=6)
    axes.set(xticks=[], yticks=[], title=f"{n * 2.25:.2f} ms on")
save(figure, __file__)
