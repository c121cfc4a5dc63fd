"""What two processes give on two cores: tokens per second, scaling efficiency, and the loss curve beside one process.

    python benchmarks/parallel.py [--rounds 3] [--steps 12] [--json out.json]

The same training steps (a decoder of 4 gated-linear and sliding-window layers, the same global batch) run by one
process with one thread, one with two threads, and two gloo processes with one thread each, in turn, `rounds` times; the
figure is the median step. Efficiency is speed over twice the speed of one process with one thread. The loss curves must
agree with one process that cuts its batch where two would share it (``accumulate = 2``): in float64, where rounding
leaves them alone, to 1e-6. In float32 sums taken in another order round differently, and spikes are where a last bit
becomes a whole count, so float32's difference is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

ROWS = {
    "1 process, 1 thread": ("none", 1, 1),
    "1 process, 2 threads": ("none", 1, 2),
    "2 processes, ddp": ("ddp", 2, 1),
    "2 processes, fsdp": ("fsdp", 2, 1),
    "2 processes, sequence": ("sequence", 2, 1),
}
BATCH, LENGTH = 8, 256


def work(kind: str, steps: int, out: str, double: bool) -> None:
    """What a process does: train, and write median seconds and losses from rank 0."""
    import torch

    from fastsnn_core import build, create
    from fastsnn_train import TrainConfig, Trainer, load_data
    from fastsnn_train.parallel import leave

    torch.manual_seed(0)
    kinds = (create("attention", "gla"), create("attention", "sliding_window", window=64))
    model = build(create("model", "decoder", d_model=192, n_layers=4, n_heads=4, attention=kinds))
    model = model.double() if double else model
    data = load_data("builtin:pydoc", seq_len=LENGTH).train
    config = TrainConfig(max_steps=steps, batch_size=BATCH, accumulate=2 if kind == "none" else 1, parallel=kind)
    trainer, losses, seconds = Trainer(model, config, quiet=True), [], []
    for step in range(steps):
        tokens = data.batch(step, BATCH, 0)
        reset = data.resets(tokens[:, :-1])
        begin = time.perf_counter()
        losses.append(trainer.train_step(tokens, reset).loss)
        seconds.append(time.perf_counter() - begin)
    if trainer.world.leader:
        result = {"seconds": statistics.median(seconds[2:]), "losses": losses}
        Path(out).write_text(json.dumps(result | {"parameters": sum(p.numel() for p in model.parameters())}))
    leave(trainer.world)


def measure(kind: str, processes: int, threads: int, steps: int, double: bool = False) -> dict[str, Any]:
    """One run in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        words = [__file__, "--work", kind, "--steps", str(steps), "--out", str(out), *["--double"] * double]
        runner = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, *(runner if processes > 1 else []), *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())


def apart(a: list[float], b: list[float]) -> float:
    """The largest difference between two curves."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--steps", type=int, default=12)
    args.add_argument("--json")
    args.add_argument("--work", help=argparse.SUPPRESS)
    args.add_argument("--out", help=argparse.SUPPRESS)
    args.add_argument("--double", action="store_true", help=argparse.SUPPRESS)
    opts = args.parse_args()
    if opts.work:
        work(opts.work, opts.steps, opts.out, opts.double)
        return 0
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    for _ in range(opts.rounds):
        for name, row in ROWS.items():
            found[name].append(measure(*row, opts.steps))
    exact = {name: measure(*row, opts.steps, double=True)["losses"] for name, row in ROWS.items()}
    first = "1 process, 1 thread"
    alone, table, result, bad = [r["seconds"] for r in found[first]], [], {}, 0
    for name, (_, processes, threads) in ROWS.items():
        seconds = [r["seconds"] for r in found[name]]
        faster = statistics.median(a / b for a, b in zip(alone, seconds, strict=True))
        single, double = apart(found[name][0]["losses"], found[first][0]["losses"]), apart(exact[name], exact[first])
        speed, share = BATCH * LENGTH / statistics.median(seconds), faster / (processes * threads)
        ms = 1e3 * statistics.median(seconds)
        table.append([name, ms, speed, faster, share, f"{double:.1e}", f"{single:.1e}"])
        result[name] = {"seconds": seconds, "speedup": faster, "float64": double, "float32": single}
        bad += double > 1e-6
    size = found[first][0]["parameters"]
    print(f"{size:,} parameters, {BATCH} x {LENGTH} tokens a step, {opts.steps} steps")
    print(harness.table(["", "ms/step", "tokens/s", "speed-up", "efficiency", "loss ± (float64)", "float32"], table))
    print(f"{len(ROWS) - bad} of {len(ROWS)} loss curves agree to 1e-6")
    harness.emit(result, opts.json)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
