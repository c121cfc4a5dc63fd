"""kill -9 at random moments of a training run: does it always resume, and end with the same weights?

    python benchmarks/kill_resume.py [--kills 20] [--steps 40] [--fresh] [--seed 0] [--json out.json]

``fastsnn fit`` trains a small decoder, with a checkpoint at every second step and an evaluation at every seventh, so
that many kills fall into the writing of one. One run is left alone; the others are killed with SIGKILL at a moment
drawn uniformly from its steps and inside a step, up to the writing of the bundle, then resumed with ``--resume``
(every fourth is killed once more on the way). Checked after each kill: whatever has the name of a checkpoint or a
bundle is whole. Checked at the end: the bundle's weights equal byte for byte, the log has every step once and the same
numbers. Runs are forked from one interpreter that has the imports done (a kill in the import of torch proves nothing);
``--fresh`` starts ``python -m fastsnn fit`` instead.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch

from fastsnn_core import bundle
from fastsnn_train.cli import fit
from fastsnn_train.loop import checkpoint

SPEC = """
fastsnn = 1
[model]
kind = "decoder"
d_model = 48
n_layers = 2
n_heads = 2
attention = [{ kind = "gla" }, { kind = "sliding_window", window = 16 }]
[data]
seq_len = 48
[train]
max_steps = STEPS
batch_size = 4
log_every = 1
eval_every = 7
checkpoint_every = 2
ema = 0.9
"""


def start(spec: Path, out: Path, fresh: bool) -> int:
    """A training process; its id."""
    words = [str(spec), "--out", str(out), "--resume", "--quiet", "--json"]
    if fresh or not hasattr(os, "fork"):
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-m", "fastsnn", "fit", *words], **silent).pid
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = fit(words)
    finally:
        os._exit(status)


def wait(out: Path, moment: float, seconds: float) -> None:
    """Until a run stands at step `moment`, a fraction of a step included; `seconds` is how long a step takes."""
    log, give_up = out / "log.jsonl", time.monotonic() + 600
    while time.monotonic() < give_up:
        if moment < 1 or (log.exists() and log.read_text().count("\n") >= int(moment)):
            break
        time.sleep(0.001)
    time.sleep(moment % 1 * seconds)


def finish(child: int) -> bool:
    """Wait; did it end by itself and well?"""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def rows(out: Path) -> list[dict[str, Any]]:
    """The log without its clock."""
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in found]


def look(out: Path) -> tuple[int, list[str]]:
    """The newest checkpoint's step (0: none yet), and everything that has a final name but is not whole."""
    halves, steps = [], [0]
    for path in checkpoint.found(out / "checkpoints"):
        try:
            steps.append(checkpoint.verify(path)["step"])
        except checkpoint.CheckpointError as error:
            halves.append(str(error))
    if (out / "model.snn").exists():
        try:
            bundle.verify(out / "model.snn")
        except bundle.BundleError as error:
            halves.append(str(error))
    return max(steps), halves


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--kills", type=int, default=20)
    args.add_argument("--steps", type=int, default=40)
    args.add_argument("--fresh", action="store_true", help="whole processes, imports and all")
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--json")
    opts = args.parse_args()
    torch.set_num_threads(1)
    rng, table, bad = random.Random(opts.seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "spec.toml")
        spec.write_text(SPEC.replace("STEPS", str(opts.steps)))
        whole, clock = Path(folder, "whole"), time.perf_counter()
        assert finish(start(spec, whole, opts.fresh)), "the run that is left alone failed"
        seconds = time.perf_counter() - clock
        wanted = (whole / "model.snn" / "weights.safetensors").read_bytes()
        for n in range(opts.kills):
            out, halves, resumed = Path(folder, f"run{n}"), [], 0
            for _ in range(2 if n % 4 == 3 else 1):
                child, moment = start(spec, out, opts.fresh), rng.uniform(resumed, opts.steps + 1)
                wait(out, moment, seconds / opts.steps)
                os.kill(child, signal.SIGKILL)
                killed = not finish(child)
                resumed, found = look(out)
                halves += found
            ended = finish(start(spec, out, opts.fresh))
            halves += look(out)[1]
            same = ended and (out / "model.snn" / "weights.safetensors").read_bytes() == wanted
            logged = ended and rows(out) == rows(whole)
            bad += not (same and logged and not halves)
            table.append([n + 1, f"{moment:.2f}", killed, resumed, ended, same, logged, len(halves)])
            for text in halves:
                print(text)
    head = ["kill", "at step", "killed", "resumed from", "ended", "same weights", "same log", "half files"]
    print(f"one run of {opts.steps} steps takes {seconds:.2f} s")
    print(harness.table(head, table))
    print(f"{opts.kills - bad} of {opts.kills} runs ended with the weights and the log of the uninterrupted one")
    harness.emit({"rows": table, "bad": bad}, opts.json)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
