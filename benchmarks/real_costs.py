"""What the verbs cost on a real chat model: seconds, processor seconds and peak memory, at 30 layers and at 15.

    python benchmarks/real_costs.py [HF_DIRECTORY] [--layers 30 15] [--only convert,eval,…] [--json FILE]

Every verb runs in a process of its own on WikiText-2 (calibration and tuning on valid, `eval` on the first 40,000
characters of test); peak memory is the process's, `beyond` what of it is not float32 weights. Seconds depend on the
machine's load, which is printed; processor seconds hardly.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fastsnn_convert.language.first_layers import first_layers

VERBS = ("convert", "eval", "tune", "tune-budget", "export", "scope", "heal")


def run(command: list[str], weights: float) -> dict[str, Any]:
    """One process: wall and processor seconds, peak memory in GB."""
    began = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "fastsnn_core", *command], os.environ)
    _, status, used = os.wait4(pid, 0)
    peak = used.ru_maxrss / 1e6
    row = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(peak, 3),
        "times_weights": round(peak / weights, 2),
        "beyond_gb": round(peak - weights, 3),
    }
    return row | ({} if status == 0 else {"failed": os.waitstatus_to_exitcode(status)})


def commands(source: Path, work: Path, data: Path) -> dict[str, list[str]]:
    """The command line of every verb."""
    snn, valid = str(work / "a.snn"), str(data / "valid.txt")
    few = work / "test.txt"
    few.write_text((data / "test.txt").read_text(encoding="utf-8")[:40_000], encoding="utf-8")
    return {
        "convert": ["convert", str(source), "--to", snn, "--calibration", valid],
        "eval": ["eval", snn, "--text", str(few), "--seq-len", "512"],
        "tune": [
            "tune",
            snn,
            "--text",
            valid,
            "--loss",
            "0.01",
            "--to",
            str(work / "t.snn"),
            "--report",
            str(work / "t"),
        ],
        "tune-budget": ["tune", snn, "--text", valid, "--budget", "1.05", "--report", str(work / "b")],
        "export": ["export", snn, "--to", "w8a", str(work / "w8a.snn")],
        "scope": ["scope", snn, "--out", str(work / "scope")],
        "heal": ["heal", snn, "--teacher", str(source), "--text", valid, "--steps", "8", "--to", str(work / "h.snn")],
    }


def main() -> int:
    """Run, print JSON."""
    cache = Path(os.environ.get("FASTSNN_DATA_CACHE") or Path.home() / ".cache/fastsnn/smollm2")
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("folder", nargs="?", type=Path, default=cache / "hf")
    args.add_argument("--layers", type=int, nargs="+", default=[30, 15])
    args.add_argument("--only", default=",".join(VERBS))
    args.add_argument("--data", type=Path, default=Path(os.environ.get("FASTSNN_DATA", "../shared/data")))
    args.add_argument("--work", type=Path, help="keep what is made here")
    args.add_argument("--json", type=Path)
    opts = args.parse_args()
    if not (opts.folder / "config.json").is_file():
        print(f"{opts.folder} is no Hugging Face directory (README of benchmarks)", file=sys.stderr)
        return 2
    rows: dict[str, Any] = {"load": os.getloadavg()}
    with tempfile.TemporaryDirectory() as scratch:
        for layers in opts.layers:
            work = (opts.work or Path(scratch)) / str(layers)
            whole = json.loads((opts.folder / "config.json").read_text())["num_hidden_layers"] == layers
            work.mkdir(parents=True, exist_ok=True)
            source = opts.folder if whole else work / "hf"
            if not source.exists():
                first_layers(opts.folder, source, layers)
            found = rows[str(layers)] = {}
            weights = sum(f.stat().st_size for f in source.glob("*.safetensors")) / 1e9
            for verb, command in commands(source, work, opts.data / "wikitext2").items():
                if verb in opts.only.split(","):
                    found[verb] = run(
                        [*command, "--quiet"] if verb in ("convert", "tune", "heal") else command, weights
                    )
                    print(json.dumps({f"{layers} {verb}": found[verb]}), file=sys.stderr, flush=True)
    text = json.dumps(rows, indent=1)
    if opts.json:
        opts.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
