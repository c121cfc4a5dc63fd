"""Peak memory of a training step per token, for T = 512 … 8192, with activation checkpointing on and off.

    python benchmarks/train_memory.py [--lengths 512 1024 2048 4096 8192] [--only "spiking hybrid"] [--json out.json]

Each figure is a process of its own: model, gradients and AdamW's moments are made by a step on 32 tokens; what a step
on one sequence of T tokens then adds to the process's peak resident memory (``ru_maxrss``), over T, is the row. Linear
memory means an equal figure in every row: the last column is the growth from one length to the next over the growth in
tokens, 1 where memory is linear. The rival is the same decoder with plain softmax attention.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from typing import Any

import harness

MODELS = {"spiking hybrid": ("gla", "sliding_window"), "dense softmax": ("softmax", "softmax")}
UNIT = 1 if sys.platform == "darwin" else 1024


def peak() -> int:
    """Largest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def work(name: str, length: int, checkpointing: bool) -> None:
    """One measurement, printed as JSON."""
    import torch

    from fastsnn_core import build, create
    from fastsnn_train import TrainConfig, Trainer

    torch.manual_seed(0)
    kinds = tuple(create("attention", a, **({"window": 128} if a == "sliding_window" else {})) for a in MODELS[name])
    sites = {} if name.startswith("spiking") else {"sites": ()}
    model = build(create("model", "decoder", d_model=128, n_layers=4, n_heads=4, attention=kinds, **sites))
    trainer = Trainer(model, TrainConfig(max_steps=9, checkpointing=checkpointing), quiet=True)
    trainer.train_step(torch.randint(0, 257, (1, 33)))
    before = peak()
    trainer.train_step(torch.randint(0, 257, (1, length + 1)))
    print(json.dumps({"bytes": peak() - before}))


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    args.add_argument("--only", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    args.add_argument("--json")
    args.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    opts = args.parse_args()
    if opts.work:
        work(opts.work[0], int(opts.work[1]), opts.work[2] == "on")
        return 0
    rows, result = [], []
    for name in opts.only:
        for switch in ("off", "on"):
            last: tuple[int, int] | None = None
            for length in opts.lengths:
                command = [sys.executable, __file__, "--work", name, str(length), switch]
                env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}  # freed is given back
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
                assert done.returncode == 0, done.stderr
                size = json.loads(done.stdout)["bytes"]
                growth = None if last is None else (size / last[1]) / (length / last[0])
                last = length, size
                row: dict[str, Any] = {"model": name, "checkpointing": switch, "tokens": length, "bytes": size}
                result.append(row | {"growth": growth})
                rows.append(
                    [f"{name}, {switch}", length, size / 2**20, size / length / 1024, growth if growth else "-"]
                )
                print(f"{rows[-1][0]}, T {length}: {size / 2**20:.0f} MiB", flush=True)
    print(harness.table(["model, checkpointing", "T", "MiB", "KiB per token", "growth"], rows))
    harness.emit({"rows": result}, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
