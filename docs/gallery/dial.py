"""Sparsity is a dial.

After training, a lower k makes more channels silent: bytes that need not be read, against loss.
"""

from figure import BLUE, new, save, trained

from fastsnn import FastSNN

model, text = (
    trained(),
    "The with statement is used to wrap the execution of a block with methods defined by a manager.",
)
dials = [m for m in model.modules() if hasattr(m, "k") and hasattr(m, "v_min")]
points = []
for k in (3.0, 2.0, 1.5, 1.0, 0.7, 0.5):
    for neuron in dials:
        neuron.k.fill_(k)
    found = FastSNN.scope(model, text=text, scopes=[]).data()
    saved = {row["key"]: row["number"] for row in found["saved"]}
    points.append((k, 100 * saved["silent_bytes"], found["divergence"]["nats"]))
for neuron in dials:
    neuron.k.fill_(3.0)
figure = new()
axes = figure.add_subplot(xlabel="silent bytes, % of what a token reads", ylabel="loss in nats per byte")
axes.plot([p[1] for p in points], [p[2] for p in points], "o-", color=BLUE)
for k, x, y in points:
    axes.annotate(f"k = {k:g}", (x, y), (4, -12), textcoords="offset points", fontsize=8)
save(figure, __file__)
