"""Which learning rate does which width want, and does the default hold at all of them?

    python benchmarks/learning_rate.py [--widths 64 128 256 512] [--rates 1e-3 3e-3 6e-3] [--steps 60]
                                       [--rows runs/learning_rate.jsonl] [--json out.json]

Decoders of two layers (gla, then a sliding window) on builtin:pydoc, 8 sequences of 64 bytes a step, everything else
the trainer's defaults; ``default`` leaves the rate to it too. A row: the held-out loss in nats a byte at the end, by
width and rate, and the highest training loss after the warm-up over the first loss (above 1: it blew up on the way).
Finished runs are lines of ``--rows`` and are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import harness
import torch

from fastsnn_core import build, create

BATCH, LENGTH = 8, 64


def run(width: int, rate: float | None, steps: int) -> dict[str, Any]:
    """Train one model."""
    from fastsnn_train import TrainConfig, Trainer, load_data
    from fastsnn_train.loop.trainer import TrainingError

    torch.manual_seed(0)
    mixers = (create("attention", "gla"), create("attention", "sliding_window", window=32))
    sizes = {"d_model": width, "n_layers": 2, "n_heads": max(1, width // 64)}
    model, data = (
        build(create("model", "decoder", attention=mixers, **sizes)),
        load_data("builtin:pydoc", seq_len=LENGTH),
    )
    given = {} if rate is None else {"lr": rate}
    config = TrainConfig(max_steps=steps, batch_size=BATCH, log_every=1, trackers=(), **given)
    trainer, begin, failed = Trainer(model, config, quiet=True), time.perf_counter(), ""
    try:
        trainer.fit(data)
    except TrainingError as error:
        failed = str(error)
    losses = [r["loss"] for r in trainer.history if "loss" in r]
    held = [r["held_out"] for r in trainer.history if "held_out" in r]
    return {
        "width": width, "rate": "default" if rate is None else rate, "steps": steps, "failed": failed,
        "held_out": held[-1] if held else None, "first": losses[0], "last": losses[-1],
        "highest": max(losses[steps // 10 :], default=losses[-1]) / losses[0],
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    args.add_argument("--rates", nargs="+", default=["default", "1e-3", "3e-3", "6e-3"])
    args.add_argument("--steps", type=int, default=60)
    args.add_argument("--rows", default="runs/learning_rate.jsonl")
    args.add_argument("--json")
    opts = args.parse_args()
    path = Path(opts.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rates = [None if text == "default" else float(text) for text in opts.rates]
    known = {(r["width"], r["rate"], r["steps"]): r for r in found}
    for width in opts.widths:
        for rate in rates:
            key = (width, "default" if rate is None else rate, opts.steps)
            if key not in known:
                known[key] = run(width, rate, opts.steps)
                with path.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
                print(json.dumps(known[key]), flush=True)

    def cell(width: int, rate: float | None) -> str:
        r = known[width, "default" if rate is None else rate, opts.steps]
        return r["failed"][:40] or f"{r['held_out']:.3f} ({r['highest']:.2f})"

    print(harness.table(["width", *opts.rates], [[str(w), *(cell(w, rate) for rate in rates)] for w in opts.widths]))
    harness.emit({"rows": list(known.values())}, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
