"""snnTorch's tutorials on MNIST at T = 25, here and there in one run: test accuracy, processor seconds of training.

    python benchmarks/temporal_rate.py [--nets mlp conv] [--epochs 1] [--seeds 0] [--who fastsnn snntorch]

`mlp` is tutorial 5: 784-1000-10, leaky neurons of β = 0.95 and θ = 1 behind both layers, 25 steps of the same image,
batches of 128, Adam at 5e-4, the loss the sum of the membrane's cross-entropies of every step, answers by the most
spikes; one epoch. `conv` is tutorial 6 at 25 steps: 12C5-MP2-64C5-MP2-1024FC10, β = 0.5, fast sigmoid of slope 25, Adam
at 1e-2, the cross-entropy of the spikes of every step. snnTorch 1.0 is run as its tutorials write it.

Ours has the same layers, input, batches, T and epochs, by `FastSNN.fit`: the preset `snn-mlp`, and what `snn-conv` is
with these layers (batch norms, a readout that does not spike); accuracy is of all 10,000 test images. With `--coding
rate` both read spikes whose probability is the pixel (tutorial 1; ours draws once for a place in the batch, snnTorch
for every batch). Each runs in a process of its own, one thread; snnTorch must be installed (pip install --no-deps
snntorch).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from convert_images import DATA, idx
from torch import Tensor, nn

BATCH = 128


def digits(part: str) -> tuple[Tensor, Tensor]:
    """Images ``[N,1,28,28]`` in [0, 1] and labels of MNIST's "train" or "t10k"."""
    images = idx(f"{part}-images-idx3-ubyte.gz")[:, None].float() / 255
    return images, idx(f"{part}-labels-idx1-ubyte.gz").long()


class Tutorial(nn.Module):
    """The networks of tutorials 5 and 6: ``[B,1,28,28]`` -> spikes and membranes of the last layer ``[T,B,10]``."""

    def __init__(self, net: str, steps: int, coding: str) -> None:
        import snntorch
        from snntorch import surrogate

        super().__init__()
        self.steps, self.coding = steps, coding
        if net == "mlp":
            how: dict[str, Any] = {"beta": 0.95}
            layers = [nn.Sequential(nn.Flatten(), nn.Linear(784, 1000)), nn.Linear(1000, 10)]
        else:
            how = {"beta": 0.5, "spike_grad": surrogate.fast_sigmoid(slope=25)}
            layers = [
                nn.Sequential(nn.Conv2d(1, 12, 5), nn.MaxPool2d(2)),
                nn.Sequential(nn.Conv2d(12, 64, 5), nn.MaxPool2d(2)),
                nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 10)),
            ]
        self.layers = nn.ModuleList(layers)
        self.cells = nn.ModuleList([snntorch.Leaky(**how) for _ in layers])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loop over time."""
        states: list[Any] = [cell.init_leaky() for cell in self.cells]
        spikes, membranes = [], []
        for _ in range(self.steps):
            z = torch.rand_like(x).lt(x).float() if self.coding == "rate" else x
            for i, (layer, cell) in enumerate(zip(self.layers, self.cells)):
                z, states[i] = cell(layer(z), states[i])
            spikes.append(z)
            membranes.append(states[-1])
        return torch.stack(spikes), torch.stack(membranes)


def of_snntorch(net: str, opts: argparse.Namespace, seed: int) -> dict[str, float]:
    """The tutorial."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    (x, y), (xt, yt) = digits("train"), digits("t10k")
    model = Tutorial(net, opts.steps, opts.coding)
    optimizer = torch.optim.Adam(model.parameters(), 5e-4 if net == "mlp" else 1e-2, (0.9, 0.999))
    begin = time.process_time()
    for _ in range(opts.epochs):
        for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            spikes, membranes = model(x[rows])
            read = membranes if net == "mlp" else spikes
            losses = nn.functional.cross_entropy(read.flatten(0, 1), y[rows].repeat(opts.steps), reduction="none")
            optimizer.zero_grad()
            loss = losses.view(opts.steps, -1).mean(1).sum()
            (loss if net == "mlp" else loss / opts.steps).backward()
            optimizer.step()
    seconds = time.process_time() - begin
    with torch.no_grad():
        found = torch.cat([model(part)[0].sum(0).argmax(1) for part in xt.split(500)])
    return {"accuracy": float((found == yt).double().mean()), "seconds": seconds}


def ours(net: str, opts: argparse.Namespace, seed: int) -> dict[str, float]:
    """The same layers by the presets."""
    from fastsnn import FastSNN
    from fastsnn_core import build
    from fastsnn_core.spec import from_table

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    coder = {"kind": "rate", "how": "bernoulli"} if opts.coding == "rate" else None
    if net == "mlp":
        model = FastSNN.build(
            arch="snn-mlp", input=(1, 28, 28), classes=10, time_steps=opts.steps, widths=(1000,), coder=coder
        )
    else:
        begun: list[dict[str, Any]] = [{"op": "repeat", "steps": opts.steps}]
        front: list[dict[str, Any]] = [{"op": "encode", "steps": opts.steps, "coder": coder}] if coder else []
        layers = [*front]
        for n, size in enumerate((12, 64)):
            layers += [{"op": "conv2d", "size": size, "kernel": [5], "bias": False}, {"op": "max_pool", "kernel": [2]}]
            layers += [{"op": "batch_norm"}, *(begun if n == 0 and not front else [])]
            layers += [{"op": "spikes", "neuron": {"kind": "lif"}}]
        table = {"kind": "sequential", "input": [1, 28, 28]}
        layers += [{"op": "flatten"}, {"op": "linear", "size": 10}]
        model = build(from_table({"fastsnn": 1, "model": table | {"layers": layers}}).model)
    train, test = (tuple(part.numpy() for part in digits(name)) for name in ("train", "t10k"))
    begin = time.process_time()
    trainer = FastSNN.fit(
        model, train, held_out=test, epochs=opts.epochs, batch_size=BATCH, seed=seed, log_every=100, trackers=(),
        quiet=True, eval_sequences=1, transforms=tuple(opts.transforms), **({"lr": opts.lr} if opts.lr else {}),
    )  # fmt: skip
    seconds = time.process_time() - begin
    trained, right = trainer.model.eval(), 0
    with torch.no_grad():
        for x, y in zip(*(torch.from_numpy(part).split(500) for part in test)):
            right += int((trained(x).mean(1).argmax(1) == y).sum())
    return {"accuracy": right / len(test[1]), "seconds": seconds}


RUNS = {"fastsnn": ours, "snntorch": of_snntorch}


def one(job: tuple[str, str, argparse.Namespace, int]) -> dict[str, float]:
    """Of a process of its own."""
    return RUNS[job[0]](job[1], job[2], job[3])


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--nets", nargs="+", default=["mlp", "conv"], choices=("mlp", "conv"))
    args.add_argument("--who", nargs="+", default=list(RUNS), choices=list(RUNS))
    args.add_argument("--coding", default="repeat", choices=("repeat", "rate"))
    args.add_argument("--steps", type=int, default=25)
    args.add_argument("--epochs", type=int, default=1)
    args.add_argument("--lr", type=float, default=0.0, help="of ours; 0: its default")
    args.add_argument("--transforms", nargs="*", default=[], help="of ours")
    args.add_argument("--seeds", type=int, nargs="+", default=[0])
    args.add_argument("--json")
    opts, rows = args.parse_args(), []
    if not (DATA / "mnist").is_dir():
        raise SystemExit(f"no MNIST under {DATA}; set FASTSNN_DATA")
    for net in opts.nets:
        for who in opts.who:
            found = []
            for seed in opts.seeds:
                with get_context("spawn").Pool(1) as pool:
                    found.append(pool.apply(one, ((who, net, opts, seed),)))
            row = {"net": net, "who": who, "T": opts.steps, "epochs": opts.epochs, "coding": opts.coding}
            row |= {key: [f[key] for f in found] for key in ("accuracy", "seconds")}
            rows.append(row)
            shown = ", ".join(f"{100 * a:.2f}" for a in row["accuracy"])
            seconds = statistics.median(row["seconds"])
            print(f"{net:<5} {who:<9} accuracy {shown} %  {seconds:.0f} processor seconds of training", flush=True)
    if opts.json:
        Path(opts.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
