"""A converted CNN and a directly trained SNN on MNIST's 10,000 test images: accuracy against steps and spikes.

    python benchmarks/temporal_beside.py --bundle runs/mnist/model.snn [--steps 1 2 3 4] [--unary 4 8 16] [--json …]

The converted one is the CNN of `convert_images.py`, which nobody here trained, by the defaults, at the input of every
projection; a step is one slot of its code (bitwise S slots carry counts to 2^S - 1, unary ones to S) and spikes are
slots that are not empty, over all sites of one image. The trained one is what `temporal.py learn --out` wrote: its
answers after each of its T steps, and by early exit; its spikes are Σ |counts|.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from convert_images import DATA, burn, idx
from torch import Tensor, nn

from fastsnn_convert.modules import convert_module
from fastsnn_core import load
from fastsnn_core.probe import Record, probe
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


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--bundle", required=True, help="of a network over time, trained on MNIST")
    args.add_argument("--steps", type=int, nargs="*", default=[1, 2, 3, 4])
    args.add_argument("--unary", type=int, nargs="*", default=[4, 8, 16])
    args.add_argument("--json")
    opts = args.parse_args()
    images, labels = idx("t10k-images-idx3-ubyte.gz")[:, None].float() / 255, idx("t10k-labels-idx1-ubyte.gz").long()
    calibration = idx("train-images-idx3-ubyte.gz")[:512, None].float() / 255
    rows: list[dict[str, Any]] = []
    for code, steps in (("bitwise", opts.steps), ("unary", opts.unary)):
        for s in steps:
            made = convert_module(burn().eval(), calibration=calibration, steps=s, code=code)
            rows.append(
                {"network": f"converted, {code}", "steps": s} | judged(made.model, images, labels, code == "unary")
            )
            print("{network:<20} steps {steps:>5}  accuracy {accuracy:.2%}  {spikes:>8,.0f} spikes".format(**rows[-1]))
    model = load(opts.bundle)
    found = samples_of(model, DATA / "mnist", quiet=True)
    seen = decisions(model, found.train, found.task, quiet=True)
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
