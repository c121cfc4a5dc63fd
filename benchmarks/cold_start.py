"""The first tokens of a process whose kernels were never compiled: seconds until each comes, beside a warm cache.

    python benchmarks/cold_start.py [BUNDLE] [--prompt 24] [--seconds 180] [--json out.json]

A W8A decoder generates in a process of its own, first with an empty ``NUMBA_CACHE_DIR``, until the fused step has
answered for 64 tokens or the seconds are over, then with the cache as that run has left it. Without BUNDLE it is a
small one (D 64, 2 layers, gated linear attention and windows in turn), so that what is measured is compilation. Seconds
from the call: first and second token, the longest time between two later ones, the median and how many are over 0.1 s,
when the fused step took over (None: not in that time; a second process goes on compiling), and the process as a whole.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from statistics import median
from typing import Any

import harness


def generate(bundle: str | None, prompt: int, seconds: float) -> None:
    """The process measured: a line of JSON."""
    import torch

    from fastsnn_core import Model, load
    from fastsnn_core.spec import converter
    from fastsnn_integer.quantization import quantise
    from fastsnn_text.generate import Sampling, generate_ids

    torch.manual_seed(0)
    table = {"kind": "decoder", "vocab_size": 257, "d_model": 64, "n_layers": 2, "n_heads": 4}
    model: Any = load(bundle).eval() if bundle else quantise(converter().structure(table, Model).build()).eval()
    start, times, fused = time.perf_counter(), list[float](), None
    for _ in generate_ids(model, list(range(1, prompt + 1)), 1 << 20, Sampling(temperature=0.0)):
        times.append(time.perf_counter() - start)
        if fused is None and model.fast_step["kernel"] is not None:
            fused = len(times)
        if len(times) > 2 and (times[-1] > seconds or (fused is not None and len(times) >= fused + 64)):
            break
    later = [after - before for before, after in pairwise(times[1:])]
    found = {"first s": times[0], "second s": times[1], "longest gap s": max(later), "median gap s": median(later)}
    found["gaps over 0.1 s"] = sum(gap > 0.1 for gap in later)
    found |= {"fused after s": None if fused is None else times[fused - 1], "tokens": len(times)}
    print(json.dumps(found), flush=True)


def run(cache: str, opts: argparse.Namespace) -> dict[str, Any]:
    """One process; its times and its end."""
    command = [sys.executable, __file__, *filter(None, [opts.bundle]), "--alone"]
    command += ["--prompt", str(opts.prompt), "--seconds", str(opts.seconds)]
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"NUMBA_CACHE_DIR": cache}
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"process s": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--prompt", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.alone:
        generate(args.bundle, args.prompt, args.seconds)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        rows = {name: run(cache, args) for name in ("empty cache", "warm cache")}
    names = list(next(iter(rows.values())))
    print(harness.table(["", *names], [[name, *(row[n] for n in names)] for name, row in rows.items()]))
    harness.emit({"rows": rows}, args.json)


if __name__ == "__main__":
    main()
