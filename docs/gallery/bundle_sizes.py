"""One model, three bundles.

The same weights as float32, INT8 and 4 bits (tables in 8): bytes on disk.
"""

from pathlib import Path

from figure import BLUE, new, save, trained

from fastsnn import FastSNN

model, sizes = trained(), {}
for name, options in (("float32", {}), ("INT8", {"to": "w8a"}), ("4 bits", {"to": "w4a", "group": 32})):
    path = FastSNN.export(model, f"{name.replace(' ', '')}.snn", **options)
    sizes[name] = (Path(path) / "weights.safetensors").stat().st_size / 1e3
figure = new(6, 3)
axes = figure.add_subplot(ylabel="kB of weights")
axes.bar(list(sizes), list(sizes.values()), color=BLUE)
for n, value in enumerate(sizes.values()):
    axes.text(n, value, f"{value:.0f}", ha="center", va="bottom")
save(figure, __file__)
