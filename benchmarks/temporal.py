"""Networks over time: what they learn in how much processor time, and a training step beside the peers'.

    python benchmarks/temporal.py learn [--arch snn-conv] [--data ../shared/data/mnist] [--epochs 3] [--json out.json]
    python benchmarks/temporal.py step [--nets conv recurrent] [--times 4 25] [--peers …] [--keep] [--double] [--json …]
    python benchmarks/temporal.py memory [--times 4 16 64 256 1024] [--json …]
    python benchmarks/temporal.py online [--steps 32] [--json …]

``learn`` trains a preset (direct coding; shifts of 1 pixel and turns of 8 degrees) and prints the test accuracy, the
processor seconds of all threads and the spikes of one inference. ``step`` takes forward and backward of two networks on
the same weights and batch, here and in each peer that is installed (`temporal_peers.py`), each in a process of its own,
one thread; it says how far outputs and gradients are apart (beside snnTorch, those of a reset with one). Rounds
are interleaved, and the ratio is the median over rounds. ``memory`` takes training steps of two hidden layers
over T steps, whole and by each way that keeps less, each in a process of its own: what autograd keeps at most (of
checkpoint_time without the segment that runs again), and how much the process grew. ``online`` trains one
network on one set of series by backpropagation through time and by each online rule.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from temporal_peers import BATCH, PEERS, one_step
from torch import Tensor

from fastsnn import FastSNN
from fastsnn_core import bundle


def given(words: list[str]) -> dict[str, Any]:
    """``key=value`` as options: the value is JSON, or the text itself."""
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def learn(opts: argparse.Namespace) -> dict[str, Any]:
    """Train a preset; what it reached, and what it cost: with --out a run that was stopped goes on, and its cost."""
    torch.manual_seed(opts.seed)
    model = FastSNN.build(arch=opts.arch, input=(1, 28, 28), classes=10, time_steps=opts.steps, **given(opts.build))
    begin, processor = time.perf_counter(), time.process_time()
    spent, before = Path(opts.out or ".") / "seconds.json", (0.0, 0.0)
    resume = bool(opts.out) and spent.exists()
    if resume:
        before = tuple(json.loads(spent.read_text(encoding="utf-8")))
    try:
        trainer = FastSNN.fit(
            model, opts.data, epochs=opts.epochs, batch_size=opts.batch, lr=opts.lr, transforms=opts.transforms,
            seed=opts.seed, log_every=100, trackers=(), quiet=opts.quiet, out=opts.out, resume=resume,
            **given(opts.set),
        )  # fmt: skip
    finally:
        cost = before[0] + time.process_time() - processor, before[1] + time.perf_counter() - begin
        if opts.out:
            spent.parent.mkdir(parents=True, exist_ok=True)
            spent.write_text(json.dumps(cost), encoding="utf-8")
    if opts.out:
        bundle.save(trainer.model, Path(opts.out) / "model.snn")
    row = trainer.history[-1]
    keys = ("accuracy", "held_out", "spikes_per_inference", "silent_fraction")
    return {
        "arch": opts.arch, "epochs": opts.epochs, "time_steps": opts.steps, "seed": opts.seed,
        "processor_seconds": cost[0], "seconds": cost[1], "options": [*opts.build, *opts.set],
    } | {key: row[key] for key in keys}  # fmt: skip


# -- one step -----------------------------------------------------------------------------------------------------


def step(opts: argparse.Namespace) -> dict[str, Any]:
    """Processor milliseconds of forward and backward on one thread, by network and T, ours and the peers'."""
    from multiprocessing import get_context

    who = ["fastsnn", *(name for name in opts.peers if importlib.util.find_spec(name))]
    for name in set(opts.peers) - set(who):
        print(f"{name} is not installed: left out (pip install --no-deps {name})")
    rows: list[dict[str, Any]] = []
    for net in opts.nets:
        for steps in opts.times:
            with contextlib.ExitStack() as around:
                pools = {n: around.enter_context(get_context("spawn").Pool(1)) for n in who}
                keeping = {n: opts.keep or n == "fastsnn" for n in who}
                first = {n: pools[n].apply(one_step, (n, net, steps, keeping[n], opts.double)) for n in who}
                alike = dict.fromkeys(who, first["fastsnn"])
                if "snntorch" in who and net == "conv":  # its reset has a gradient
                    call = ("fastsnn attached", net, steps, True, opts.double)
                    alike["snntorch"] = pools["fastsnn"].apply(one_step, call)
                found: dict[str, list[float]] = {n: [] for n in who}
                for _ in range(opts.rounds):
                    for n in who:
                        found[n].append(pools[n].apply(one_step, (n, net, steps, keeping[n], opts.double))["seconds"])
            for n in who:
                pairs = list(zip(alike[n]["grads"], first[n]["grads"]))
                row: dict[str, Any] = {
                    "net": net, "T": steps, "who": n, "kept_memory": keeping[n],
                    "ms": 1e3 * statistics.median(found[n]),
                    "ratio": statistics.median([b / a for a, b in zip(found["fastsnn"], found[n])]),
                    "outputs_apart": float(abs(first[n]["out"] - first["fastsnn"]["out"]).max()),
                    "gradients_apart": max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs),
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{net:<10} T {steps:>4}  {n:<14} {row['ms']:9.1f} ms  {row['ratio']:5.2f} ×  "
                    f"outputs {row['outputs_apart']:.1e}, gradients {row['gradients_apart']:.1e}"
                )
    return {"batch": BATCH, "rows": rows, "threads": 1, "double": opts.double}


# -- memory over time ------------------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "whole": {}, "checkpoint_time 32": {"checkpoint_time": 32}, "tbptt 32": {"tbptt": 32},
    "sltt": {"online": "sltt"}, "ottt": {"online": "ottt"},
}  # fmt: skip


class Held:
    """A tensor that autograd keeps; counts bytes while it lives."""

    now = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Held.now += self.size
        Held.peak = max(Held.peak, Held.now)

    def __del__(self) -> None:
        Held.now -= self.size


def resident(key: str) -> int:
    """Bytes of this process, now (VmRSS) or at most (VmHWM)."""
    rows = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(row for row in rows if row.startswith(key)).split()[1])


def two_steps(steps: int, way: str) -> tuple[int, int, float]:
    """Of training steps: most bytes that autograd kept, the process's growth, and seconds of the second step."""
    from fastsnn_core import create
    from fastsnn_model_sequential import Layer, Sequential
    from fastsnn_train.config import TrainConfig
    from fastsnn_train.loop.optimizer_step import OptimizerStep
    from fastsnn_train.loop.parallel import World
    from fastsnn_train.samples.task import SampleTask

    torch.set_num_threads(1)
    spikes = Layer(op="spikes", neuron=create("neuron", "lif", fixed=True))
    hidden = (Layer(op="linear", size=256), spikes)
    model = Sequential(input=(64,), layers=(*hidden, *hidden, Layer(op="linear", size=10))).build()
    step = OptimizerStep(model, TrainConfig(precision="fp32", **WAYS[way]), World())
    step.task = SampleTask("classification", create("objective", "cross_entropy", readout="step"))
    x, y = torch.randn(32, steps, 64), torch.arange(32) % 10
    step.take(x[:, :1], y, 0, look=False, leaving=False)
    before = resident("VmRSS")
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        step.take(x, y, 1, look=False, leaving=False)
    begin = time.process_time()
    step.take(x, y, 2, look=False, leaving=False)
    return Held.peak, resident("VmHWM") - before, time.process_time() - begin


def memory(opts: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a training step by T and way."""
    from multiprocessing import get_context

    rows = []
    for way in WAYS:
        for steps in opts.times:
            with get_context("spawn").Pool(1) as pool:
                kept, grown, seconds = pool.apply(two_steps, (steps, way))
            rows.append({"way": way, "T": steps, "kept_mb": kept / 1e6, "grown_mb": grown / 1e6, "seconds": seconds})
            print(
                f"{way:<20} T {steps:>5}  kept {kept / 1e6:9.2f} MB  process + {grown / 1e6:8.1f} MB  {seconds:7.3f} s"
            )
    return {"batch": 32, "widths": [64, 256, 256, 10], "rows": rows}


# -- online rules ----------------------------------------------------------------------------------------------------


NETWORKS: dict[str, list[dict[str, Any]]] = {
    "one layer": [{"width": 128, "neuron": {"kind": "lif", "tau": 5.0}}],
    "normed": [{"width": 128, "neuron": {"kind": "lif", "tau": 5.0}, "norm": True}],
    "two layers": [{"width": 64, "neuron": {"kind": "lif", "tau": 5.0}}] * 2,
    "recurrent": [{"width": 128, "neuron": {"kind": "recurrent_lif", "tau": 5.0}}],
}
"""Hidden layers of the networks that `online` trains."""


def hidden_layers(name: str) -> Any:
    """One of `NETWORKS` of two inputs and four outputs."""
    from fastsnn_core import build
    from fastsnn_core.spec import from_table

    layers: list[dict[str, Any]] = []
    for row in NETWORKS[name]:
        layers += [{"op": "linear", "size": row["width"]}] + [{"op": "batch_norm"}] * row.get("norm", False)
        layers.append({"op": "spikes", "neuron": row["neuron"]})
    table = {"kind": "sequential", "input": [2], "layers": [*layers, {"op": "linear", "size": 4}]}
    return build(from_table({"fastsnn": 1, "model": table}).model)


def online(opts: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of networks on one set of series, trained through time and by each online rule."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(1200) % 4
    phase = torch.arange(opts.steps)[None] * (0.2 + 0.15 * y[:, None])
    waves = torch.stack([phase.sin(), phase.cos()], 2) + 0.3 * torch.randn(1200, opts.steps, 2, generator=generator)
    rows = []
    for name in opts.networks:
        for way in ("none", "sltt", "ottt"):
            torch.manual_seed(opts.seed)
            model = hidden_layers(name)
            begin = time.process_time()
            run = FastSNN.fit(
                model, (waves.numpy(), y.numpy()), max_steps=300, batch_size=64, lr=5e-3, online=way, seed=opts.seed,
                objective={"kind": "cross_entropy", "readout": "step"}, trackers=(), quiet=True, holdout=0.25,
                eval_sequences=300, **given(opts.set),
            )  # fmt: skip
            row = {"network": name, "online": way, "accuracy": run.history[-1]["accuracy"], "T": opts.steps}
            row["seconds"] = time.process_time() - begin
            rows.append(row)
            print(
                f"{name:<10} {way:<6} accuracy {row['accuracy']:.4f}  {row['seconds']:.1f} s of processor", flush=True
            )
    return {"steps": opts.steps, "rows": rows}


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("what", choices=("learn", "step", "memory", "online"))
    args.add_argument("--arch", default="snn-conv")
    args.add_argument("--data", default="../shared/data/mnist")
    args.add_argument("--epochs", type=float, default=3.0)
    args.add_argument("--steps", type=int, help="T of learn (4), online (32)")
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--lr", type=float, default=2e-3)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--transforms", nargs="*", default=["shift:1", "rotate:8"])
    args.add_argument("--build", nargs="*", default=[], help="key=value of the preset, as widths=[32,64]")
    args.add_argument("--set", nargs="*", default=[], help="key=value of the training, as ema=0.999")
    args.add_argument("--out", help="folder of a run: one that was stopped goes on; it ends with model.snn")
    args.add_argument("--quiet", action="store_true")
    args.add_argument("--times", type=int, nargs="+", help="T of step (4, 25, 100) and memory (4 … 1024)")
    args.add_argument("--peers", nargs="*", default=sorted(PEERS), choices=sorted(PEERS))
    args.add_argument("--nets", nargs="+", default=["conv", "recurrent"], choices=("conv", "recurrent"))
    args.add_argument("--keep", action="store_true", help="step: let the peers keep freed memory, too")
    args.add_argument(
        "--double", action="store_true", help="step: in float64, where gradients differ by equations alone"
    )
    args.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), help="of online")
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--json")
    opts = args.parse_args()
    opts.steps = opts.steps or (32 if opts.what == "online" else 4)
    opts.times = opts.times or ([4, 16, 64, 256, 1024] if opts.what == "memory" else [4, 25, 100])
    found = {"learn": learn, "step": step, "memory": memory, "online": online}[opts.what](opts)
    print(json.dumps(found))
    if opts.json:
        Path(opts.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
