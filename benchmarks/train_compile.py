"""Does torch.compile make training steps faster, and after how many steps has it paid for itself?

    python benchmarks/train_compile.py [--rounds 9] [--length 256] [--neurons lif_sint …] [--json out.json]

Steps of `Trainer` with ``compile`` off and on, in turn; the ratio is the median over rounds. The first compiled step
holds the compiler's own time.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import harness
import torch

from fastsnn_core import build, create
from fastsnn_train import TrainConfig, Trainer


def trainer(neuron: str, compiled: bool) -> Trainer:
    torch.manual_seed(0)
    model = build(create("model", "decoder", d_model=128, n_layers=4, n_heads=4, neuron=create("neuron", neuron)))
    return Trainer(model, TrainConfig(max_steps=10**6, compile=compiled), quiet=True)


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=9)
    args.add_argument("--length", type=int, default=256)
    args.add_argument("--neurons", nargs="+", default=["adaptive_threshold", "lif_sint"])
    args.add_argument("--json")
    opts = args.parse_args()
    tokens = torch.randint(0, 257, (4, opts.length + 1))
    rows: list[list[Any]] = []
    for neuron in opts.neurons:
        plain, fast = trainer(neuron, False), trainer(neuron, True)
        begin = time.perf_counter()
        fast.train_step(tokens)
        first = time.perf_counter() - begin
        assert fast.stepper.compiled is not None, "torch.compile failed; see the warning"
        steps: dict[str, harness.Run | None] = {
            "off": partial(plain.train_step, tokens), "on": partial(fast.train_step, tokens)
        }  # fmt: skip
        times = harness.interleave(steps, opts.rounds)
        off, on, ratio = harness.median(times, "off"), harness.median(times, "on"), harness.ratio(times, "off", "on")
        saved = (off or 0.0) - (on or 0.0)
        paid = f"{first / saved:.0f} steps" if saved > 0 else "never"
        rows.append([neuron, 1e3 * (off or 0), 1e3 * (on or 0), ratio, first, paid])
        print(harness.disturbance(times))
    print(harness.table(["neuron", "plain ms", "compiled ms", "faster", "first step s", "paid after"], rows))
    harness.emit({"rows": rows}, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
