"""The first tokens of a process whose kernels were never compiled: seconds until each comes, beside a warm cache.

    python benchmarks/cold_start.py [--prompt 24] [--tokens 400] [--json out.json]

A small W8A decoder (D 64, 2 layers, gated linear attention and windows in turn) generates in a process of its own,
first with an empty ``NUMBA_CACHE_DIR``, then with the one that run has filled; small, so that what is measured is
compilation. Seconds from the call: first and second token, the token from which the fused step answers, the last one;
and the end of the process, which finishes what it compiles in the background.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import harness


def generate(prompt: int, tokens: int) -> None:
    """The process measured: a line of JSON."""
    import torch

    from fastsnn_core import Model
    from fastsnn_core.spec import converter
    from fastsnn_integer.quantization import quantise
    from fastsnn_text.generate import Sampling, generate_ids

    torch.manual_seed(0)
    table = {"kind": "decoder", "vocab_size": 257, "d_model": 64, "n_layers": 2, "n_heads": 4}
    model = quantise(converter().structure(table, Model).build()).eval()
    start, times, fused = time.perf_counter(), [], None
    for _ in generate_ids(model, list(range(1, prompt + 1)), tokens, Sampling(temperature=0.0)):
        times.append(time.perf_counter() - start)
        if fused is None and model.fast_step["kernel"] is not None:
            fused = len(times)
    found = {"first s": times[0], "second s": times[1], "fused from token": fused, "last s": times[-1]}
    print(json.dumps(found), flush=True)


def run(cache: str, prompt: int, tokens: int) -> dict[str, Any]:
    """One process; its times and its end."""
    command = [sys.executable, __file__, "--alone", "--prompt", str(prompt), "--tokens", str(tokens)]
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"NUMBA_CACHE_DIR": cache}
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"process s": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.alone:
        generate(args.prompt, args.tokens)
        return
    with tempfile.TemporaryDirectory() as cache:
        rows = {name: run(cache, args.prompt, args.tokens) for name in ("empty cache", "warm cache")}
    names = list(next(iter(rows.values())))
    print(harness.table(["", *names], [[name, *(row[n] for n in names)] for name, row in rows.items()]))
    harness.emit({"rows": rows}, args.json)


if __name__ == "__main__":
    main()
