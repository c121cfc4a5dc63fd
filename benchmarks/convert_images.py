"""Image networks converted: accuracy against steps, early exit, both coverages, and SpikingJelly's rate coding beside.

    python benchmarks/convert_images.py [--rival-python PYTHON] [--plot FILE.png] [--only ours,seeds,rival]

Two networks on MNIST: a CNN that nobody here trained (burn_mnist.safetensors: three unpadded 3x3 convolutions, batch
norm, two linear layers) and an MLP 784-256-256-10 trained here. All accuracies are of the 10,000 test images;
calibration images are from the training set and carry no labels.

A step is one slot of the code: bitwise, S slots carry counts up to 2^S - 1; unary (a rate code, what SpikingJelly's
T steps are), S slots carry counts up to S. *projections* spikes at the input of every convolution and linear layer, the
image included; *activations* only behind the ReLUs, so that the first layer multiplies pixels (as SpikingJelly's does).
The goals are of the row that is named beforehand: fixed threshold, projections, bitwise, calibrated with the defaults.

PYTHON is an interpreter with torch and spikingjelly; without one the rival's rows are null. ``--rows FILE`` takes what
is not run from the JSON of an earlier run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import emit, table
from rival_spikingjelly import Rival
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from fastsnn_convert import convert
from fastsnn_convert.modules import from_weights
from fastsnn_convert.modules.accuracy_vs_steps import EarlyExit, accuracy, accuracy_curve, logits, replay_by_slots

DATA = Path(os.environ.get("FASTSNN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MEAN, DEVIATION = 0.1307, 0.3081
NAMES = {
    "conv1": "layers.1", "conv2": "layers.3", "conv3": "layers.5", "norm1": "layers.7",
    "fc1": "layers.9", "fc2": "layers.11", "norm2": "layers.12",
}  # fmt: skip
TIMES = (2, 4, 8, 16, 32)
MODES = ("99.9%", "Max")
PIECES = ("ours", "seeds", "rival")
SEEDS = (0, 1, 2)
FIXED = {"kind": "ilif", "beta": 0.0}
NEURONS: dict[str, Any] = {"fixed threshold": FIXED, "adaptive_threshold": "adaptive_threshold"}
HEAD = ["network", "neuron", "coverage", "code", "steps", "accuracy %", "lost", "silent", "spikes/channel", "saturated"]


def idx(name: str) -> torch.Tensor:
    """An idx file of MNIST."""
    raw = gzip.decompress((DATA / "mnist" / name).read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * raw[3] :]), dtype=torch.uint8).reshape(shape)


def burn() -> nn.Module:
    """The CNN over pixels in [0, 1]; its input normalisation is written as a batch norm, which gets folded."""
    layers: list[dict[str, Any]] = [{"op": "batch_norm", "affine": False}]
    for size in (8, 16, 24):
        layers += [{"op": "conv2d", "size": size, "kernel": [3]}, {"op": "relu"}]
    layers += [{"op": "batch_norm"}, {"op": "flatten"}, {"op": "linear", "size": 32}, {"op": "relu"}]
    layers += [{"op": "linear", "size": 10}, {"op": "batch_norm"}]
    weights = load_file(DATA / "mnist_nets" / "burn_mnist.safetensors")
    weights["layers.0.running_mean"] = torch.tensor([MEAN])
    weights["layers.0.running_var"] = torch.tensor([DEVIATION**2 - 1e-5])  # the norm adds 1e-5
    return from_weights(weights, {"kind": "sequential", "input": [1, 28, 28], "layers": layers}, NAMES)


def mlp(images: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int = 0) -> nn.Module:
    """784-256-256-10, trained with Adam, dropout 0.2 and a cosine."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(256, 10),
    )  # fmt: skip
    steps = epochs * (len(images) // 128)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: len(images) // 128 * 128].split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def plain(network: nn.Module, calibration: torch.Tensor) -> nn.Module:
    """The same network, batch norms folded, as an ``nn.Sequential`` of torch's own layers: what SpikingJelly takes."""
    folded = convert(network, example=calibration[:2], measure=False).model
    kept = [m for m in folded.layers if type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Dropout)]
    at = next((i for i, m in enumerate(kept) if isinstance(m, nn.Linear)), 0)
    return nn.Sequential(*kept[:at], nn.Flatten(), *kept[at:]).eval()


def spikingjelly(
    rival: Rival, network: nn.Module, calibration: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, modes: Any
) -> dict[str, Any]:
    """Accuracy of `RateCodingRecipe` after T time steps (mean output over them), by mode of its thresholds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.pt"
        held = {"network": plain(network, calibration), "calibration": calibration}
        torch.save(held | {"images": images, "labels": labels}, path)
        found = {m: rival.ask(verb="images", data=str(path), mode=m, times=list(TIMES)) for m in modes}
        return found | {"images": len(images), "dense": accuracy(network, images, labels)}


def seeds(
    train: torch.Tensor, train_labels: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, o: argparse.Namespace
) -> list[dict[str, Any]]:
    """The MLP of several seeds at 2 steps, by neuron."""
    rows = []
    for seed in SEEDS:
        network = mlp(train, train_labels, o.epochs, seed)
        dense, found = accuracy(network, images, labels), {}
        for name, neuron in NEURONS.items():
            done = convert(network, calibration=train[: o.calibration], steps=2, neuron=neuron)
            found[name] = accuracy(done.model, images, labels)
        rows.append({"seed": seed, "dense": dense, **found})
        lost = ", ".join(f"{name} {a:.2%} ({100 * (dense - a):.2f} lost)" for name, a in found.items())
        print(f"MLP, seed {seed}: dense {dense:.2%}; at 2 steps {lost}", flush=True)
    return rows


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--json", help="write the figures here")
    args.add_argument("--only", default=",".join(PIECES), help=f"pieces, with commas, out of {', '.join(PIECES)}")
    args.add_argument("--rows", help="an earlier run's JSON, for the pieces that are not run")
    args.add_argument("--plot", help="draw accuracy against steps here (.png or .svg)")
    args.add_argument("--rival-python", default=os.environ.get("FASTSNN_RIVAL_PYTHON"), help="the rival's interpreter")
    args.add_argument("--rival-images", type=int, default=10_000, help="test images that the rival takes")
    args.add_argument("--modes", default=",".join(MODES), help="of the rival's thresholds")
    args.add_argument("--images", type=int, default=10_000, help="test images (fewer for a quick look)")
    args.add_argument("--calibration", type=int, default=512, help="training images that thresholds are chosen on")
    args.add_argument("--epochs", type=int, default=6, help="of the MLP's training")
    opts = args.parse_args()
    if not (DATA / "mnist").is_dir():
        raise SystemExit(f"no MNIST under {DATA}; set FASTSNN_DATA")
    torch.set_num_threads(1)
    pieces = set(opts.only.split(",")) - {""}
    train = idx("train-images-idx3-ubyte.gz").float()[:, None] / 255
    train_labels = idx("train-labels-idx1-ubyte.gz").long()
    images = idx("t10k-images-idx3-ubyte.gz").float()[: opts.images, None] / 255
    labels = idx("t10k-labels-idx1-ubyte.gz").long()[: opts.images]
    calibration = train[: opts.calibration]
    found: dict[str, Any] = {"networks": {}} | (json.loads(Path(opts.rows).read_text()) if opts.rows else {})
    found |= {"images": len(images), "calibration": len(calibration)}
    if pieces & {"ours", "rival"}:
        networks = {"burn_mnist CNN": burn(), "MLP 784-256-256-10": mlp(train, train_labels, opts.epochs)}
        rival, says = Rival.start(opts.rival_python) if "rival" in pieces else (None, "not asked")
        print(f"rival: {says}", flush=True)
        for name, network in networks.items():
            one = found["networks"].setdefault(name, {})
            if "ours" in pieces:
                began = time.perf_counter()
                one |= study(network, calibration, images, labels)
                one["seconds"] = round(time.perf_counter() - began, 1)
            if "rival" in pieces:
                some = images[: opts.rival_images], labels[: opts.rival_images]
                modes = opts.modes.split(",")
                one["spikingjelly"] = spikingjelly(rival, network, calibration, *some, modes) if rival else None
            show(name, one)
    if "seeds" in pieces:
        found["seeds"] = seeds(train, train_labels, images, labels, opts)
    if len(found["networks"]) == 2 and all("rows" in one for one in found["networks"].values()):
        goals(found)
        if opts.plot:
            plot(found, opts.plot)
    emit(found, opts.json)


def study(network: nn.Module, calibration: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> dict:
    """Every row of one network."""
    dense = accuracy(network, images, labels)
    rows, exits, best = [], [], {}
    for neuron, coverage, code, steps in (
        (FIXED, "projections", "bitwise", (1, 2, 3, 4)),
        ("adaptive_threshold", "projections", "bitwise", (1, 2, 3, 4)),
        (FIXED, "activations", "bitwise", (1, 2, 3, 4)),
        (FIXED, "activations", "unary", (2, 4, 8, 16, 32)),
    ):
        curve, done = accuracy_curve(
            network, images, labels, calibration=calibration, steps=steps, neuron=neuron, coverage=coverage, code=code
        )
        label = "fixed threshold" if neuron is FIXED else neuron
        rows += [{"neuron": label, "coverage": coverage, **row} for row in curve]
        if code == "bitwise" and coverage == "projections":
            models = {s: c.model for s, c in done.items()}
            exits += [{"neuron": label} | EarlyExit(models).measure(images, labels, c) for c in (0.5, 0.9, 0.99, 0.999)]
            best[label] = done
    saved = convert(network, calibration=calibration, steps=4, neuron=FIXED, steps_per_site=0.15)
    rows.append(
        {"neuron": "fixed threshold", "coverage": "projections", "steps": "per layer", "code": "bitwise",
         "accuracy": accuracy(saved.model, images, labels),
         "per_layer": {r["name"]: r["steps"] for r in saved.report["modules"] if r["site"]},
         **{k: saved.report["quality"][k] for k in ("silent_fraction", "spikes_per_channel", "saturation")}}
    )  # fmt: skip
    with replay_by_slots(best["fixed threshold"][4].model) as slots:
        again = logits(best["fixed threshold"][4].model, images[:200])
    difference = float((again - logits(best["fixed threshold"][4].model, images[:200])).abs().max())
    return {
        "dense": dense, "rows": rows, "early_exit": exits,
        "replay": {"slots": slots, "largest difference to counts": difference},
        "report": best["fixed threshold"][4].report["modules"],
    }  # fmt: skip


def show(name: str, one: dict[str, Any]) -> None:
    """The tables of one network."""
    if "rows" not in one:
        print(f"{name}: {one}", flush=True)
        return
    dense, lines = one["dense"], []
    for r in one["rows"]:
        cells = [name, r["neuron"], r["coverage"], r["code"], r["steps"]]
        cells += [f"{100 * r['accuracy']:.2f}", f"{100 * (dense - r['accuracy']):.2f}"]
        lines.append([*cells, r["silent_fraction"], r["spikes_per_channel"], r["saturation"]])
    print(f"\n{name}: dense {dense:.2%}, {one['seconds']} s\n" + table(HEAD, lines))
    for r in one["rows"]:
        if "per_layer" in r:
            print("steps per layer:", ", ".join(f"{k} {v}" for k, v in r["per_layer"].items()))
    for mode in MODES:
        rival = (one.get("spikingjelly") or {}).get(mode)
        figures = "null" if rival is None else ", ".join(f"T = {t} {a:.2%}" for t, a in rival.items())
        print(f"SpikingJelly RateCodingRecipe {mode} (activations, unary): {figures}", flush=True)
    if one.get("spikingjelly"):
        print(f"  on the first {one['spikingjelly']['images']} images, dense {one['spikingjelly']['dense']:.2%}")
    for e in one["early_exit"]:
        print(
            f"early exit, {e['neuron']}, confidence {e['confidence']}: {e['accuracy']:.2%} at {e['mean_steps']:.2f} "
            f"steps (mean; {e['mean_slots']:.2f} slots taken, {e['first']:.0%} leave at one step)"
        )
    difference = one["replay"]["largest difference to counts"]
    print(f"replayed slot by slot: largest difference to the counts {difference:.1e}")


def plot(found: dict[str, Any], path: str) -> None:
    """Accuracy against steps, a panel per network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = {
        ("fixed threshold", "projections", "bitwise"): ("fixed threshold, projections", "C0", "o-"),
        ("adaptive_threshold", "projections", "bitwise"): ("adaptive threshold, projections", "C1", "s-"),
        ("fixed threshold", "activations", "bitwise"): ("fixed threshold, activations", "C2", "^-"),
        ("fixed threshold", "activations", "unary"): ("fixed threshold, activations, unary", "C2", "v:"),
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for ax, (name, one) in zip(axes, found["networks"].items()):
        ax.axhline(100 * one["dense"], color="black", lw=0.8, label="dense")
        for key, (label, colour, style) in lines.items():
            rows = [
                r for r in one["rows"] if (r["neuron"], r["coverage"], r["code"]) == key and r["steps"] != "per layer"
            ]
            ax.plot([r["steps"] for r in rows], [100 * r["accuracy"] for r in rows], style, color=colour, label=label)
        exits = [e for e in one["early_exit"] if e["neuron"] == "fixed threshold"]
        ax.plot(
            [e["mean_steps"] for e in exits], [100 * e["accuracy"] for e in exits], "x--", color="C0",
            label="fixed threshold, projections, early exit (mean steps)",
        )  # fmt: skip
        for mode, style in zip(MODES, ("D-", "d:")):
            if rival := (one.get("spikingjelly") or {}).get(mode):
                label = f"SpikingJelly {mode}, {one['spikingjelly']['images']} images"
                ax.plot([int(t) for t in rival], [100 * a for a in rival.values()], style, color="C3", label=label)
        ax.set(
            title=f"{name} (dense {one['dense']:.2%})",
            xlabel="steps (slots of the code)",
            ylim=(93, 100 * one["dense"] + 0.4),
        )
        ax.set_xscale("log", base=2)
        ax.set_xticks([1, 2, 3, 4, 8, 16, 32], ["1", "2", "3", "4", "8", "16", "32"])
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on the 10,000 test images, %")
    axes[1].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def goals(found: dict[str, Any]) -> None:
    """What the project asks for."""
    cnn, net = found["networks"].values()

    def at(one: dict[str, Any], steps: int) -> float:
        """The named row; not the best of several."""
        wanted = {"neuron": "fixed threshold", "coverage": "projections", "code": "bitwise", "steps": steps}
        return next(r["accuracy"] for r in one["rows"] if wanted.items() <= r.items())

    found["goals"] = {
        "CNN at 4 steps (at least 99.10 %)": [at(cnn, 4), at(cnn, 4) >= 0.9910],
        "MLP at 2 steps (within 0.2 points)": [at(net, 2), net["dense"] - at(net, 2) <= 0.002],
    }
    if "seeds" in found:
        lost = sum(r["dense"] - r["fixed threshold"] for r in found["seeds"]) / len(found["seeds"])
        found["goals"][f"MLP at 2 steps, lost by the mean of {len(found['seeds'])} seeds (0.2)"] = [lost, lost <= 0.002]
    print()
    for goal, (value, met) in found["goals"].items():
        print(f"{goal}: {value:.2%}, {'met' if met else 'NOT met'}")


if __name__ == "__main__":
    main()
