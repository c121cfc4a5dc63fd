"""A converted CNN and a directly trained SNN on MNIST's 10,000 test images: accuracy against steps and spikes.

    python benchmarks/temporal_beside.py --bundle runs/mnist/model.snn [--steps 1 2 3 4] [--unary 4 8 16] [--json …]
    python benchmarks/temporal_beside.py --bundle … --same [--epochs 4] [--batch 100] [--lr 5e-3]

The converted one is the CNN of `convert_images.py`, which nobody here trained, by the defaults, at the input of every
projection; a step is one slot of its code (bitwise S slots carry counts to 2^S - 1, unary ones to S) and spikes are
slots that are not empty, over all sites of one image. With ``--same`` it is the bundle's own architecture with ReLU in
place of its neurons, trained first with the settings that the bundle was trained with, as far as the command says them
(shifts of 1 pixel and turns of 8 degrees, label smoothing 0.05, rate to 0); its *activations* carry spikes, since the
trained network multiplies pixels in its first layer, too. The trained one is what `temporal.py learn --out` wrote: its
answers after each of its T steps, and by early exit; its spikes are Σ |counts|.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from convert_images import DATA, burn, idx
from torch import Tensor, nn

from fastsnn import FastSNN
from fastsnn_convert.modules import convert_module
from fastsnn_core import build, load
from fastsnn_core.probe import Record, probe
from fastsnn_core.spec import from_table, to_table
from fastsnn_train import decisions
from fastsnn_train.samples.of_model import samples_of


@torch.no_grad()
def judged(model: nn.Module, images: Tensor, labels: Tensor, unary: bool) -> dict[str, float]:
    """Accuracy, and spikes of one image."""
    spikes, right = 0.0, 0

    def add(name: str, record: Record) -> None:
        nonlocal spikes
        counts = record.spikes.counts.abs().long()
        while bool(counts.any()):
            spikes += float(counts.sum() if unary else (counts & 1).sum())
            counts = torch.zeros_like(counts) if unary else counts >> 1

    model.eval()
    for x, y in zip(images.split(500), labels.split(500)):
        with probe(model, add):
            right += int((model(x).argmax(-1) == y).sum())
    return {"accuracy": right / len(labels), "spikes": spikes / len(labels)}


def with_relu(model: Any, opts: argparse.Namespace, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Any:
    """The architecture of `model` with ReLU in place of its neurons and without time, trained."""
    layers = []
    for layer in to_table(model.spec)["layers"]:
        if layer["op"] != "repeat":
            layers.append({"op": "relu"} if layer["op"] == "spikes" else layer)
    torch.manual_seed(opts.seed)
    twin: Any = build(from_table({"fastsnn": 1, "model": to_table(model.spec) | {"layers": layers}}).model)
    begin = time.process_time()
    run = FastSNN.fit(
        twin, tuple(part.numpy() for part in train), held_out=tuple(part.numpy() for part in test), epochs=opts.epochs,
        batch_size=opts.batch, lr=opts.lr, transforms=("shift:1", "rotate:8"), seed=opts.seed, final=0.0, warmup=0.2,
        objective={"kind": "cross_entropy", "smoothing": 0.05}, log_every=100, trackers=(), quiet=True,
        eval_sequences=1,
    )  # fmt: skip
    print(f"the same with ReLU: {opts.epochs:g} epochs in {time.process_time() - begin:.0f} processor seconds")
    return run.model.eval()


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--bundle", required=True, help="of a network over time, trained on MNIST")
    args.add_argument("--steps", type=int, nargs="*", default=[1, 2, 3, 4])
    args.add_argument("--unary", type=int, nargs="*", default=[4, 8, 16])
    args.add_argument("--same", action="store_true", help="convert the bundle's own architecture with ReLU")
    args.add_argument("--epochs", type=float, default=4)
    args.add_argument("--batch", type=int, default=100)
    args.add_argument("--lr", type=float, default=5e-3)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--json")
    opts = args.parse_args()
    images, labels = idx("t10k-images-idx3-ubyte.gz")[:, None].float() / 255, idx("t10k-labels-idx1-ubyte.gz").long()
    train = idx("train-images-idx3-ubyte.gz")[:, None].float() / 255, idx("train-labels-idx1-ubyte.gz").long()
    rows: list[dict[str, Any]] = []
    model = load(opts.bundle)
    dense = with_relu(model, opts, train, (images, labels)) if opts.same else burn().eval()
    found = judged(dense, images, labels, False)
    print(f"as floats           accuracy {found['accuracy']:.2%}")
    rows.append({"network": "floats", "accuracy": found["accuracy"]})
    coverage = "activations" if opts.same else "projections"
    for code, steps in (("bitwise", opts.steps), ("unary", opts.unary)):
        for s in steps:
            made = convert_module(dense, calibration=train[0][:512], steps=s, code=code, coverage=coverage)
            rows.append(
                {"network": f"converted, {code}", "steps": s} | judged(made.model, images, labels, code == "unary")
            )
            print("{network:<20} steps {steps:>5}  accuracy {accuracy:.2%}  {spikes:>8,.0f} spikes".format(**rows[-1]))
    digits = samples_of(model, DATA / "mnist", quiet=True)
    seen = decisions(model, digits.train, digits.task, quiet=True)
    for row in seen["curve"]:
        rows.append({"network": "trained", "steps": row["step"], "accuracy": row["accuracy"], "spikes": row["spikes"]})
        print("{network:<20} steps {steps:>5}  accuracy {accuracy:.2%}  {spikes:>8,.0f} spikes".format(**rows[-1]))
    for row in seen["exits"]:
        name = f"trained, exit {row['confidence']:g}"
        rows.append({"network": name, "steps": row["mean_steps"], "accuracy": row["accuracy"], "spikes": row["spikes"]})
        print("{network:<20} steps {steps:>5.2f}  accuracy {accuracy:.2%}  {spikes:>8,.0f} spikes".format(**rows[-1]))
    print(f"the mean step from which an answer stands: {seen['decision_step']:.2f}")
    if opts.json:
        Path(opts.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
