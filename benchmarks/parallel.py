"""What two processes give on two cores: tokens per second, scaling efficiency, and the loss curve beside one process.

    python benchmarks/parallel.py [--rounds 3] [--steps 12] [--json out.json]

The same training steps (a decoder of 4 gated-linear and sliding-window layers, the same global batch) run by one
process with one thread, one with two threads, and two gloo processes with one thread each, in turn, `rounds` times; the
figure is the median step. Efficiency is speed over twice the speed of one process with one thread. ``--rounds 0`` looks
at the loss curves alone.

The curves must agree to 1e-6, in float64 and in float32, with one process that works on the shares one after the
other: half of the rows each (``accumulate = 2``) beside ddp and fsdp, half of the tokens each, states handed on with
their gradients (`sequence_shares`), beside sequence. The last column is float32 beside a process that takes rows and
sequences whole: the same sums in another order, whose last bits grow to whole counts; it has no bar. Every run reports
checksums of its first weights and its batches; where they are not all the same, code or data changed under the
benchmark, and it says so instead of comparing.
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
import zlib
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
ALONE = "1 process, 1 thread"
BESIDE = {"ddp": "none", "fsdp": "none", "sequence": "shares"}  # what one process does, to be compared with
BATCH, LENGTH = 8, 256


def work(kind: str, steps: int, out: str, double: bool) -> None:
    """What a process does: train, and write median seconds, losses and checksums from rank 0."""
    import torch

    from fastsnn_core import build, create
    from fastsnn_train import TrainConfig, Trainer, load_data
    from fastsnn_train.loop.parallel import leave_group

    torch.manual_seed(0)
    kinds = (create("attention", "gla"), create("attention", "sliding_window", window=64))
    model = build(create("model", "decoder", d_model=192, n_layers=4, n_heads=4, attention=kinds))
    first = [zlib.crc32(p.detach().numpy().tobytes()) for p in model.parameters()]
    model = model.double() if double else model
    data = load_data("builtin:pydoc", seq_len=LENGTH).train
    config = TrainConfig(
        max_steps=steps, batch_size=BATCH, accumulate=2 if kind == "none" else 1,
        parallel=kind if kind in BESIDE else "none",
    )  # fmt: skip
    trainer, losses, seconds = Trainer(model, config, quiet=True), [], []
    if kind == "shares":
        trainer.stepper.loss = shared(model)  # type: ignore[method-assign]
    for step in range(steps):
        tokens = data.batch(step, BATCH, 0)
        first.append(zlib.crc32(tokens.numpy().tobytes()))
        reset = data.resets(tokens[:, :-1])
        begin = time.perf_counter()
        losses.append(trainer.train_step(tokens, reset).loss)
        seconds.append(time.perf_counter() - begin)
    if trainer.world.leader:
        result = {"seconds": statistics.median(seconds[2:]), "losses": losses, "began": first}
        Path(out).write_text(json.dumps(result | {"parameters": sum(p.numel() for p in model.parameters())}))
    leave_group(trainer.world)


def shared(model: Any) -> Any:
    """Mean loss over two shares of the tokens, read one after the other by one process."""
    from torch.nn import functional as F

    from fastsnn_train.loop.sequence import sequence_shares

    def loss(tokens: Any, reset: Any, plain: bool = True) -> Any:
        found = zip(sequence_shares(model, tokens[:, :-1], 2, reset=reset), tokens[:, 1:].chunk(2, 1))
        return sum(F.cross_entropy(y.flatten(0, 1), t.flatten()).double() for y, t in found) / 2

    return loss


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
    runs: dict[tuple[str, bool], dict[str, Any]] = {}
    for double in (True, False):
        for kind, processes in [("none", 1), ("whole", 1), ("shares", 1), *((kind, 2) for kind in BESIDE)]:
            runs[kind, double] = measure(kind, processes, 1, opts.steps, double)
    began = [r["began"] for r in [*runs.values(), *(r for rows in found.values() for r in rows)]]
    if any(start != began[0] for start in began):
        print("runs began with other weights or other batches: code or data changed meanwhile; nothing is compared")
        return 1
    print(f"{runs['none', True]['parameters']:,} parameters, {BATCH} x {LENGTH} tokens a step, {opts.steps} steps")
    result: dict[str, Any] = speeds(found) if opts.rounds else {}
    table, bad = [], 0
    for kind, alone in BESIDE.items():
        gaps = {
            name: apart(runs[kind, double]["losses"], runs[beside, double]["losses"])
            for name, beside, double in (
                ("float64", alone, True), ("float32", alone, False), ("float64 whole", "whole", True),
                ("float32 whole", "whole", False),
            )
        }  # fmt: skip
        bad += gaps["float64"] > 1e-6 or gaps["float32"] > 1e-6 or gaps["float64 whole"] > 1e-6
        table.append([f"2 processes, {kind}", *(f"{gap:.1e}" for gap in gaps.values())])
        result[f"curve {kind}"] = gaps
    head = ["loss beside one process", "float64", "float32", "float64, whole", "float32, whole (no bar)"]
    print(harness.table(head, table))
    print(f"{len(BESIDE) - bad} of {len(BESIDE)} loss curves agree to 1e-6")
    harness.emit(result, opts.json)
    return 1 if bad else 0


def speeds(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The table of speeds."""
    alone, table, result = [r["seconds"] for r in found[ALONE]], [], {}
    for name, (_, processes, threads) in ROWS.items():
        seconds = [r["seconds"] for r in found[name]]
        faster = statistics.median(a / b for a, b in zip(alone, seconds, strict=True))
        median, share = statistics.median(seconds), faster / (processes * threads)
        table.append([name, 1e3 * median, BATCH * LENGTH / median, faster, share])
        result[name] = {"seconds": seconds, "speedup": faster, "efficiency": share}
    print(harness.table(["", "ms/step", "tokens/s", "speed-up", "efficiency"], table))
    return result


if __name__ == "__main__":
    raise SystemExit(main())
