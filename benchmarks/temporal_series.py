"""Real time series, of those that ship inside the package aeon: a recurrent spiking network beside a GRU of its width.

    python benchmarks/temporal_series.py --aeon FOLDER/aeon/datasets/data [--problems JapaneseVowels BasicMotions]

Both read the same series (each channel scaled by the training series' mean and spread, padded with 0 to the longest),
take as many steps of as many samples with AdamW and a cosine, and are judged on the problem's own test series; the
score of a class is the mean over time. `--width` is that of both: a GRU has three times the weights. The spiking one is
the preset `snn-recurrent`, with what `--build` and `--set` change. The files (.ts) are read here; aeon itself is not
imported. ``--gradients`` prints, after some steps of training on the first problem, the spectral norm of the recurrent
weights and how the gradient of a loss at the last step grows on its way back in time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from temporal import given
from torch import Tensor, nn

from fastsnn import FastSNN


def read_series(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Series ``[T_i, D]`` and labels of a .ts file: channels between colons, values between commas, the label last."""
    series, labels = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "@#":
            *channels, label = line.split(":")
            series.append(np.array([[float(v) for v in row.split(",")] for row in channels], np.float32).T)
            labels.append(label.strip())
    return series, labels


def problem(folder: Path, name: str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and test samples ``[N,T,D]`` with classes ``[N]``."""
    parts = [read_series(folder / name / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")]
    steps = max(len(row) for series, _ in parts for row in series)
    seen, classes = np.concatenate(parts[0][0]), sorted(set(parts[0][1]))
    mean, spread = seen.mean(0), seen.std(0) + 1e-6
    found = []
    for series, labels in parts:
        x = np.zeros((len(series), steps, seen.shape[1]), np.float32)
        for line, row in zip(x, series):
            line[: len(row)] = (row - mean) / spread
        found.append((x, np.array([classes.index(label) for label in labels])))
    return found[0], found[1]


class Gated(nn.Module):
    """A GRU, dropout, and a linear readout at every step."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.gru, self.drop = nn.GRU(features, width, batch_first=True), nn.Dropout(0.1)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[B,T,D] -> [B,T,C]``."""
        y: Tensor = self.out(self.drop(self.gru(x)[0]))
        return y


def gated(data: Any, test: Any, opts: argparse.Namespace, seed: int) -> dict[str, float]:
    """The GRU's accuracy and processor seconds."""
    torch.manual_seed(seed)
    (x, y), (xt, yt) = ([torch.from_numpy(part) for part in half] for half in (data, test))
    net = Gated(x.shape[2], opts.width, int(y.max()) + 1)
    begin = time.process_time()
    optimizer = torch.optim.AdamW(net.parameters(), opts.lr, (0.9, 0.95), weight_decay=0.1)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, opts.lr, opts.steps, pct_start=0.1, anneal_strategy="cos")
    draw = np.random.default_rng(seed)
    for _ in range(opts.steps):
        at = torch.from_numpy(draw.permutation(len(x))[: opts.batch])
        nn.functional.cross_entropy(net(x[at]).mean(1), y[at]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
    net.eval()
    with torch.no_grad():
        right = (net(xt).mean(1).argmax(1) == yt).double().mean()
    return {"accuracy": float(right), "seconds": time.process_time() - begin}


def preset(data: Any, opts: argparse.Namespace) -> Any:
    """The spiking network."""
    shape, classes = (data[0].shape[2],), int(data[1].max()) + 1
    how = {"widths": (opts.width,)} | given(opts.build)
    return FastSNN.build(arch="snn-recurrent", input=shape, classes=classes, **how)


def spiking(data: Any, test: Any, opts: argparse.Namespace, seed: int) -> dict[str, float]:
    """The same of a recurrent spiking network."""
    torch.manual_seed(seed)
    net = preset(data, opts)
    begin = time.process_time()
    run = FastSNN.fit(
        net, data, held_out=test, max_steps=opts.steps, batch_size=opts.batch, lr=opts.lr, seed=seed,
        log_every=opts.steps, eval_sequences=len(test[0]), trackers=(), quiet=True, **given(opts.set),
    )  # fmt: skip
    row = run.history[-1]
    found = {"accuracy": row["accuracy"], "seconds": time.process_time() - begin}
    return found | {"spikes": row["spikes_per_inference"]}


def back_in_time(data: Any, opts: argparse.Namespace) -> None:
    """After 0 to 100 steps of training: |R|, and the gradient of a loss at the last step against t."""
    for steps in (0, 10, 25, 50, 100):
        torch.manual_seed(opts.seeds[0])
        net = preset(data, opts)
        if steps:
            how = {"max_steps": steps, "warmup": min(1.0, 30 / steps), "lr": opts.lr * min(1.0, steps / 30)}
            FastSNN.fit(
                net, data, held_out=data, batch_size=opts.batch, schedule="constant", seed=opts.seeds[0], trackers=(),
                quiet=True, log_every=10 * steps, **how, **given(opts.set),
            )  # fmt: skip
        net.train()
        cell = next(m for m in net.modules() if hasattr(m, "recurrent"))
        seen: list[Tensor] = []

        def catch(module: nn.Module, args: tuple[Any, ...], seen: list[Tensor] = seen) -> tuple[Any, ...]:
            seen.append(args[0].detach().requires_grad_())
            return seen[-1], *args[1:]

        handle = cell.register_forward_pre_hook(catch)
        x, y = (torch.from_numpy(part) for part in data)
        nn.functional.cross_entropy(net(x)[:, -1], y).backward()
        handle.remove()
        grad = seen[0].grad
        assert grad is not None
        norms, last = grad.norm(dim=(0, 2)), grad.shape[1] - 1
        spectral = float(torch.linalg.matrix_norm(cell.recurrent.weight.detach() / cell.theta, 2))
        growth = float(norms[0] / norms[last]) ** (1 / last)
        shown = ", ".join(f"t {t} {float(norms[t]):.1e}" for t in range(0, last + 1, max(1, last // 4)))
        print(f"after {steps:>3} steps: |R| {spectral:.2f} thresholds, growth a step {growth:.3f}; {shown}", flush=True)


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--aeon", type=Path, required=True, help="aeon/datasets/data of an installed aeon")
    args.add_argument("--problems", nargs="+", default=["JapaneseVowels", "BasicMotions"])
    args.add_argument("--width", type=int, default=128)
    args.add_argument("--steps", type=int, default=300)
    args.add_argument("--batch", type=int, default=32)
    args.add_argument("--lr", type=float, default=5e-3)
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("--build", nargs="*", default=[], help="key=value of the preset, as spread=0")
    args.add_argument("--set", nargs="*", default=[], help="key=value of its training, as recurrent_lr=1")
    args.add_argument("--gradients", action="store_true")
    args.add_argument("--json")
    opts, rows = args.parse_args(), []
    if opts.gradients:
        back_in_time(problem(opts.aeon, opts.problems[0])[0], opts)
        return 0
    for name in opts.problems:
        data, test = problem(opts.aeon, name)
        for who, train in (("gru", gated), ("fastsnn", spiking)):
            found = [train(data, test, opts, seed) for seed in opts.seeds]
            row: dict[str, Any] = {"problem": name, "who": who, "width": opts.width, "steps": opts.steps}
            row |= {key: [one[key] for one in found] for key in found[0]}
            rows.append(row)
            shown = ", ".join(f"{100 * a:.2f}" for a in row["accuracy"])
            seconds = statistics.median(row["seconds"])
            mean = 100 * statistics.mean(row["accuracy"])
            print(f"{name:<16} {who:<8} accuracy {mean:.2f} % ({shown})  {seconds:.1f} processor seconds", flush=True)
    print(json.dumps(rows))
    if opts.json:
        Path(opts.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
