"""Energy, honestly.

Counted events at 45 nm with memory traffic, beside the dense network of as many bits, which is the one to beat.
"""

from figure import new, save, trained

from fastsnn import FastSNN

data = FastSNN.scope(trained(), scopes=["energy"]).data()["scopes"]["energy"]["data"]
figure = new(7.5, 3.4)
axes = figure.add_subplot(xlabel="nJ per token")
left = [0.0] * len(data["rows"])
for part in data["rows"][0]["parts"]:
    values = [row["parts"][part] / 1e3 for row in data["rows"]]
    axes.barh([row["name"] for row in data["rows"]], values, left=left, label=part)
    left = [a + b for a, b in zip(left, values)]
axes.invert_yaxis()
axes.legend(frameon=False, fontsize=8)
save(figure, __file__)
