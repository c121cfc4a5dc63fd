"""How long SpikeScope's report of a real model takes: the whole command in a process of its own, and every part of it.

    python benchmarks/report_time.py BUNDLE TEXT [--json benchmarks/results/report_time.json]

BUNDLE: SmolLM2-135M converted by `fastsnn convert` (README of benchmarks). The bar is 60 s on a quiet machine. Seconds
depend on the machine's load, processor seconds hardly; both are written with the load and the number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from real_costs import run

from fastsnn_core.bundle import training_environment

BAR = 60.0


def main() -> int:
    """Run, print JSON."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bundle", type=Path)
    args.add_argument("text", type=Path)
    args.add_argument("--json", type=Path)
    opts = args.parse_args()
    weights = (opts.bundle / "weights.safetensors").stat().st_size / 1e9
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "report")
        row = run(["scope", str(opts.bundle), "--text", str(opts.text), "--out", str(out)], weights)
        found = json.loads((out / "report.json").read_text(encoding="utf-8"))
        size = (out / "index.html").stat().st_size
    kept = {key: training_environment()[key] for key in ("python", "torch") if key in training_environment()}
    rows = {
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "model": {"parameters": found["model"]["parameters"], "tokens": found["input"]["used"]},
        "whole": row | {"bar_seconds": BAR, "within": row["seconds"] <= BAR, "page_mb": round(size / 1e6, 2)},
        "parts_seconds": found["took"],
        "environment": kept | {"threads": found["environment"]["threads"], "load": round(load, 1)},
    }
    text = json.dumps(rows, indent=1)
    if opts.json:
        opts.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if row["seconds"] <= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
