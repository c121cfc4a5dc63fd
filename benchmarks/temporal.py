"""Networks over time: what they learn in how much processor time, and a training step beside the peers'.

    python benchmarks/temporal.py learn [--arch snn-conv] [--data ../shared/data/mnist] [--epochs 3] [--json out.json]
    python benchmarks/temporal.py step [--times 4 25] [--peers snntorch spikingjelly] [--json …]
    python benchmarks/temporal.py memory [--times 4 16 64 256 1024] [--json …]
    python benchmarks/temporal.py online [--steps 32] [--json …]

``learn`` trains a preset (direct coding; shifts of 1 pixel and turns of 8 degrees) and prints the test accuracy, the
processor seconds of all threads and the spikes of one inference. ``step`` takes forward and backward of one network, a
convolution, a leaky neuron, a pool, a hidden layer and a readout, on the same weights and batch, here and in each peer
that is installed (multi-step SpikingJelly, snnTorch step by step); first it checks that spikes and gradients agree.
Rounds are interleaved, and the ratio is the median over rounds. ``memory`` takes training steps of two hidden layers
over T steps, whole and by each way that keeps less, each in a process of its own: what autograd keeps at most (of
checkpoint_time without the segment that runs again), and how much the process grew. ``online`` trains one
network on one set of series by backpropagation through time and by each online rule.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn import FastSNN

BATCH, BETA, THRESHOLD = 64, 0.5, 1.0


def learn(opts: argparse.Namespace) -> dict[str, Any]:
    """Train a preset; what it reached, and what it cost."""
    torch.manual_seed(opts.seed)
    model = FastSNN.build(arch=opts.arch, input=(1, 28, 28), classes=10, time_steps=opts.steps)
    begin, processor = time.perf_counter(), time.process_time()
    trainer = FastSNN.fit(
        model, opts.data, epochs=opts.epochs, batch_size=opts.batch, lr=opts.lr, transforms=opts.transforms,
        seed=opts.seed, log_every=100, trackers=(),
    )  # fmt: skip
    row = trainer.history[-1]
    keys = ("accuracy", "held_out", "spikes_per_inference", "silent_fraction")
    return {
        "arch": opts.arch, "epochs": opts.epochs, "time_steps": opts.steps, "seed": opts.seed,
        "processor_seconds": time.process_time() - processor, "seconds": time.perf_counter() - begin,
    } | {key: row[key] for key in keys}  # fmt: skip


# -- one step -----------------------------------------------------------------------------------------------------


def layers() -> list[nn.Module]:
    """The weights that all share."""
    torch.manual_seed(0)
    return [nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32 * 49, 10)]


def ours(parts: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    """``[B,T,1,28,28] -> [B,T,10]``."""
    cell = {"kind": "lif", "tau": 1 / (1 - BETA), "fixed": True}
    spec = [
        {"op": "conv2d", "size": 16, "kernel": [3], "padding": [1]}, {"op": "spikes", "neuron": cell},
        {"op": "max_pool", "kernel": [2]}, {"op": "conv2d", "size": 32, "kernel": [3], "padding": [1]},
        {"op": "spikes", "neuron": cell}, {"op": "max_pool", "kernel": [2]}, {"op": "flatten"},
        {"op": "linear", "size": 10},
    ]  # fmt: skip
    from fastsnn_core import build
    from fastsnn_core.spec import from_table

    model = build(
        from_table({"fastsnn": 1, "model": {"kind": "sequential", "input": [1, 28, 28], "layers": spec}}).model
    )
    places = [module for module in model.layers if isinstance(module, nn.Conv2d | nn.Linear)]
    for place, part in zip(places, parts):
        place.weight, place.bias = part.weight, part.bias
    return model


def of_snntorch(parts: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    """snnTorch's loop over time; the reset at once, and the arctangent of slope 2, as here.

    Its gradient goes through the reset and ours does not, so gradients are not those; spikes are.
    """
    import snntorch
    from snntorch import surrogate

    how = {"beta": BETA, "threshold": THRESHOLD, "spike_grad": surrogate.atan(alpha=2.0), "reset_delay": False}
    cells = [snntorch.Leaky(**how), snntorch.Leaky(**how)]

    def run(x: Tensor) -> Tensor:
        states = [cell.reset_mem() for cell in cells]
        rows = []
        for t in range(x.shape[1]):
            z, states[0] = cells[0](parts[0](x[:, t]), states[0])
            z, states[1] = cells[1](parts[1](nn.functional.max_pool2d(z, 2)), states[1])
            rows.append(parts[2](nn.functional.max_pool2d(z, 2).flatten(1)))
        return torch.stack(rows, 1)

    return run


def of_spikingjelly(parts: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    """SpikingJelly's multi-step mode, soft reset, arctangent."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def cell() -> nn.Module:
        return neuron.LIFNode(
            tau=1 / (1 - BETA), decay_input=False, v_threshold=THRESHOLD, v_reset=None, detach_reset=True,
            surrogate_function=surrogate.ATan(alpha=2.0), step_mode="m",
        )  # fmt: skip

    def over(part: nn.Module) -> nn.Module:
        return layer.SeqToANNContainer(part)

    net = nn.Sequential(
        over(parts[0]), cell(), over(nn.MaxPool2d(2)), over(parts[1]), cell(), over(nn.MaxPool2d(2)),
        over(nn.Flatten()), over(parts[2]),
    )  # fmt: skip

    def run(x: Tensor) -> Tensor:
        functional.reset_net(net)
        return net(x.transpose(0, 1).contiguous()).transpose(0, 1)

    return run


PEERS: dict[str, Callable[[list[nn.Module]], Callable[[Tensor], Tensor]]] = {
    "snntorch": of_snntorch,
    "spikingjelly": of_spikingjelly,
}


def step(opts: argparse.Namespace) -> dict[str, Any]:
    """Processor milliseconds of forward and backward, by T, ours and the peers'."""
    parts, rows = layers(), []
    runs = {"fastsnn": ours(parts)}
    for name in opts.peers:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: left out (pip install --no-deps {name})")
            continue
        runs[name] = PEERS[name](parts)
    for steps in opts.times:
        x = (torch.rand(BATCH, steps, 1, 28, 28, generator=torch.Generator().manual_seed(1)) > 0.7).float()
        y = torch.arange(BATCH) % 10
        found: dict[str, list[float]] = {name: [] for name in runs}
        grads: dict[str, list[Tensor]] = {}
        outs: dict[str, Tensor] = {}
        for round_ in range(opts.rounds + 1):
            for name, run in runs.items():
                begin = time.process_time()
                out = run(x)
                loss = nn.functional.cross_entropy(out.mean(1), y)
                loss.backward()
                if round_:
                    found[name].append(time.process_time() - begin)
                outs[name] = out.detach()
                grads[name] = [p.grad.clone() for part in parts for p in part.parameters()]
                for part in parts:
                    part.zero_grad(set_to_none=True)
        apart = {
            name: max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(grads["fastsnn"], rows_))
            for name, rows_ in grads.items()
        }
        for name, times in found.items():
            ratios = [theirs / own for theirs, own in zip(times, found["fastsnn"])]
            row: dict[str, Any] = {
                "T": steps,
                "who": name,
                "ms": 1e3 * statistics.median(times),
                "ratio": statistics.median(ratios),
            }
            row |= {"gradients_apart": apart[name], "outputs_apart": float((outs[name] - outs["fastsnn"]).abs().max())}
            rows.append(row)
            print(
                f"T {steps:>4}  {name:<14} {row['ms']:9.1f} ms  {row['ratio']:5.2f} ×  "
                f"outputs {row['outputs_apart']:.1e}, gradients {apart[name]:.1e}"
            )
    return {"batch": BATCH, "rows": rows, "threads": torch.get_num_threads()}


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


def online(opts: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of one network on one set of series, trained through time and by each online rule."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(1200) % 4
    phase = torch.arange(opts.steps)[None] * (0.2 + 0.15 * y[:, None])
    waves = torch.stack([phase.sin(), phase.cos()], 2) + 0.3 * torch.randn(1200, opts.steps, 2, generator=generator)
    rows = []
    for way in ("none", "sltt", "ottt"):
        torch.manual_seed(opts.seed)
        model = FastSNN.build(
            arch="snn-recurrent", input=(2,), classes=4, widths=(64, 64), neuron="lif", tau=0, dropout=0.0
        )
        begin = time.process_time()
        run = FastSNN.fit(
            model, (waves.numpy(), y.numpy()), max_steps=300, batch_size=64, lr=5e-3, online=way, seed=opts.seed,
            objective={"kind": "cross_entropy", "readout": "step"}, trackers=(), quiet=True,
        )  # fmt: skip
        row = {"online": way, "accuracy": run.history[-1]["accuracy"], "seconds": time.process_time() - begin}
        rows.append(row)
        print(f"{way:<6} accuracy {row['accuracy']:.4f}  {row['seconds']:.1f} processor seconds")
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
    args.add_argument("--times", type=int, nargs="+", help="T of step (4, 25) and memory (4 … 1024)")
    args.add_argument("--peers", nargs="*", default=sorted(PEERS), choices=sorted(PEERS))
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--json")
    opts = args.parse_args()
    opts.steps = opts.steps or (32 if opts.what == "online" else 4)
    opts.times = opts.times or ([4, 16, 64, 256, 1024] if opts.what == "memory" else [4, 25])
    found = {"learn": learn, "step": step, "memory": memory, "online": online}[opts.what](opts)
    print(json.dumps(found))
    if opts.json:
        Path(opts.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
