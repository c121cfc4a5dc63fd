"""Training and decoding beside busy neighbours: two threads, one thread, passive waiting; and whether it is noticed.

    python benchmarks/contended.py [--steps 20] [--seconds 20]

Each cell is a fresh process; neighbours are processes that count for ever, one per core at most. Run it on a machine
that is idle otherwise, or the row of no neighbours means nothing. Prints the table and writes contended.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = {
    "two threads": {"OMP_NUM_THREADS": "2"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two, passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
}
JOB = """
import json, logging, sys, time, torch
said = []
class Hear(logging.Handler):
    def emit(self, record): said.append(record.getMessage())
logging.getLogger("fastsnn").addHandler(Hear())
from fastsnn import FastSNN
torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[1]))
model = FastSNN.build(arch="snn-tiny", neuron="lif_sint")
ids = [torch.randint(0, 257, (4, 129)) for _ in range(400)]
FastSNN.fit(model, iter(ids[:2]), max_steps=2, quiet=True)
began, steps, budget = time.perf_counter(), 0, float(sys.argv[2])
class Timed:
    def __iter__(self):
        global steps
        for batch in ids[2:]:
            if time.perf_counter() - began > budget: return
            steps += 1
            yield batch
FastSNN.fit(model, Timed(), max_steps=400, quiet=True)
training = steps * 4 * 128 / (time.perf_counter() - began)
model.generate(torch.arange(8), max_tokens=4, temperature=0)
began, tokens = time.perf_counter(), 0
while time.perf_counter() - began < budget / 4:
    tokens += len(model.generate(torch.arange(8), max_tokens=16, temperature=0)) - 8
print(json.dumps({"training": training, "decoding": tokens / (time.perf_counter() - began), "said": said[:1]}))
"""


def cell(setting: dict[str, str], seconds: float) -> dict:
    """One process under these settings."""
    env = (
        os.environ
        | setting
        | {"MKL_NUM_THREADS": setting["OMP_NUM_THREADS"], "NUMBA_NUM_THREADS": setting["OMP_NUM_THREADS"]}
    )
    done = subprocess.run(
        [sys.executable, "-c", JOB, setting["OMP_NUM_THREADS"], str(seconds)], env=env, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The table."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--seconds", type=float, default=20.0, help="of training per cell (default 20)")
    args.add_argument("--neighbours", default="0,1,2", help="how many (default 0,1,2)")
    args.add_argument("--out", default="contended.json")
    opts = args.parse_args()
    rows = []
    for count in map(int, opts.neighbours.split(",")):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        time.sleep(0.5)
        try:
            for name, setting in SETTINGS.items():
                rows.append({"neighbours": count, "threads": name} | cell(setting, opts.seconds))
                r = rows[-1]
                heard = "noticed" if r["said"] else ""
                print(
                    f"{count} busy  {name:<13} {r['training']:8.0f} tok/s  decode {r['decoding']:6.1f}  {heard}",
                    flush=True,
                )
        finally:
            for each in busy:
                each.kill()
                each.wait()
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").is_file() else "?"
    Path(opts.out).write_text(json.dumps({"rows": rows, "cores": os.cpu_count(), "load at the end": load}, indent=1))


if __name__ == "__main__":
    main()
