"""Where a model is silent.

Every token and every site of a model on one picture: hidden channels of the feed-forward layers are the silent ones.
"""

from figure import new, save, trained

from fastsnn import FastSNN

cells = FastSNN.scope(trained(), text="def silent(row): return [c for c in row if c == 0]", scopes=[]).data()["cells"]
grid = [[1 - a / row["channels"] for a in row["active"]] for row in cells["sites"]]
figure = new(8, 3)
axes = figure.add_subplot(xlabel="token")
shown = axes.imshow(grid, aspect="auto", cmap="cividis_r", vmin=0, vmax=1, interpolation="nearest")
axes.set_yticks(range(len(grid)), [row["site"] for row in cells["sites"]], fontsize=7)
axes.set_xticks(range(len(cells["labels"])), cells["labels"], fontsize=7)
figure.colorbar(shown, label="silent channels")
save(figure, __file__)
