"""Training on two processes.

Two processes take half of every batch each and sum their gradients; the losses are those of one process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from figure import BLUE, ORANGE, new, save

SPEC = """
fastsnn = 1
[model]
kind = "decoder"
d_model = 32
n_layers = 2
n_heads = 2
[data]
dataset = "builtin:pydoc"
seq_len = 64
[train]
max_steps = 16
batch_size = 8
log_every = 1
seed = 0
"""
ALONE = "accumulate = 2\n"  # the same two halves, one after the other
curves = {}
TWO = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
for name, launch, more in (("one", [], ALONE), ("two", TWO, 'parallel = "ddp"\n')):
    Path(f"{name}.toml").write_text(SPEC + more, encoding="utf-8")
    command = [sys.executable, "-m", *launch, "fastsnn", "fit", f"{name}.toml", "--out", name]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    rows = map(json.loads, Path(name, "log.jsonl").read_text(encoding="utf-8").splitlines())
    curves[name] = [(row["step"], row["loss"]) for row in rows if "loss" in row]
assert all(abs(a[1] - b[1]) < 1e-3 for a, b in zip(curves["one"], curves["two"], strict=True))
figure = new()
axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per byte)")
axes.plot(*zip(*curves["one"]), "o", color=BLUE, markersize=7, label="one process, two halves in turn")
axes.plot(*zip(*curves["two"]), ".-", color=ORANGE, markersize=5, label="two processes, a half each")
axes.legend(frameon=False)
save(figure, __file__)
