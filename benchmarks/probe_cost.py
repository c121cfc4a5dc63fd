"""What looking costs: a pass and a decoded token with SpikeScope's probes on, and after a report, beside neither.

    python benchmarks/probe_cost.py [--width 512] [--layers 6] [--tokens 256] [--rounds 15] [--json probe_cost.json]

Rows, in turns within each round, processor seconds of one thread (other programs do not count): *bare* is the model
before anything looked at it; *again* is the same once more, so its ratio is the floor below which this machine tells
nothing apart; *off* is a twin of equal weights that was reported on; *on* is a twin with every spiking module watched
(`fastsnn_core.probe`) while it steps; *entered* is that with the probes put in and taken out at every call. Ratios are
medians over rounds of the times of one round. Bounds: *on* at most 1.10, *off* as far from 1 as the floor. Exit status
1 where a bound is broken.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from typing import Any

import harness
import torch
from torch import nn

from fastsnn_core import build, create
from fastsnn_core.probe import probe
from fastsnn_scope import scope

BOUND = 1.10


def rows_of(models: list[nn.Module], call: Any, calls: int, rounds: int) -> dict[str, Any]:
    """Ratios to *bare* of the other rows; the floor is the middle half of *again*, or its distance from 1."""
    model, off, on, entered = models

    def watched() -> Any:
        with probe(entered):
            return call(entered)

    runs = {
        "bare": lambda: call(model), "again": lambda: call(model), "off": lambda: call(off), "on": lambda: call(on),
        "entered": watched,
    }  # fmt: skip

    def ask(name: str) -> dict[str, float]:
        begin = time.process_time()
        for _ in range(calls):
            runs[name]()
        return {"seconds": (time.process_time() - begin) / calls, "whole": 1.0, "waited": 0.0}

    with probe(on):
        for name in runs:
            ask(name)
        times = harness.in_rounds(list(runs), ask, rounds)
    ratios = {name: [a / b for a, b in zip(times[name], times["bare"])] for name in runs if name != "bare"}
    quarters = statistics.quantiles(ratios["again"], n=4)
    found: dict[str, Any] = {name: round(statistics.median(values), 4) for name, values in ratios.items()}
    found["floor"] = round(max(abs(found["again"] - 1), (quarters[2] - quarters[0]) / 2), 4)
    return found | {"bare_ms": 1e3 * statistics.median(times["bare"])}


@torch.no_grad()
def main() -> int:
    """Measure, print; 1 where a bound is broken."""
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--width", type=int, default=512)
    args.add_argument("--layers", type=int, default=6)
    args.add_argument("--tokens", type=int, default=256)
    args.add_argument("--rounds", type=int, default=15)
    args.add_argument("--json")
    opts = args.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    spec = create("model", "decoder", d_model=opts.width, n_layers=opts.layers, n_heads=8)
    model = build(spec).eval()
    models = [model, *(copy.deepcopy(model) for _ in range(3))]
    tokens = torch.randint(0, 256, (1, opts.tokens))
    with tempfile.TemporaryDirectory() as folder:
        scope(models[1], tokens=tokens[:, :32], scopes=["sparsity"]).report(folder)
    state = model(tokens[:, :64], return_state=True)[1]
    calls = {
        f"a pass of {opts.tokens} tokens": (lambda m: m(tokens), 2),
        "a decoded token": (lambda m: m(tokens[:, 64:65], state, return_state=True)[0], 8),
    }
    measured = {name: rows_of(models, call, often, opts.rounds) for name, (call, often) in calls.items()}
    names = ["again", "off", "on", "entered", "floor"]
    print(
        harness.table(["", "bare ms", *names], [[n, r["bare_ms"], *(r[c] for c in names)] for n, r in measured.items()])
    )
    bad = [n for n, r in measured.items() if r["on"] > BOUND or abs(r["off"] - 1) > r["floor"] + 0.01]
    print(f"bound: on ≤ {BOUND:.2f}, off = 1 within the floor and a hundredth: {', '.join(bad) or 'kept'}")
    harness.emit({"rows": measured, "bound": BOUND}, opts.json)
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
