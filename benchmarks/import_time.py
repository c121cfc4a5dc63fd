"""Cold start: seconds until `from fastsnn import FastSNN`, `import fastsnn_core` and `fastsnn --help` are done.

    python benchmarks/import_time.py [--runs 7] [--json]

Each in a process of its own, the interpreter's own start taken off; the fastest of the runs, since other work
of the machine only slows them. The limit of 0.3 s holds before torch is needed; importing torch stands beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

LIMIT = 0.3
ROWS = {
    "from fastsnn import FastSNN": ["-c", "from fastsnn import FastSNN"],
    "import fastsnn_core": ["-c", "import fastsnn_core"],
    "fastsnn --help": ["-m", "fastsnn_core", "--help"],
    "import torch": ["-c", "import torch"],
}


def seconds(words: list[str], runs: int) -> float:
    """The fastest of some runs."""
    found = []
    for _ in range(runs):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - begin)
    return min(found)


def main() -> int:
    """Print the table; 1 where the limit is broken."""
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--runs", type=int, default=7)
    args.add_argument("--json", action="store_true")
    opts = args.parse_args()
    bare = seconds(["-c", "pass"], opts.runs)
    rows = {name: round(seconds(words, opts.runs) - bare, 3) for name, words in ROWS.items()}
    print(json.dumps(rows) if opts.json else "\n".join(f"{name:30} {value:6.3f} s" for name, value in rows.items()))
    return int(rows["from fastsnn import FastSNN"] > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
