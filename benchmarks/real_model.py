"""A real chat model: what conversion costs, and silent bytes at 1 % and 5 % perplexity by several criteria.

    python benchmarks/real_model.py [HF_DIRECTORY] [--windows 8] [--criteria teal,wina,spon,ours]

SmolLM2-135M-Instruct in float32 (default directory: $FASTSNN_DATA_CACHE or ~/.cache/fastsnn/smollm2, then hf);
calibration on WikiText-2 valid, everything measured on the first windows of 512 tokens of test. JSON on stdout, bars on
stderr.
Perplexities do not depend on the machine's load, seconds do: the load is in the output.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import torch

from fastsnn_convert import convert
from fastsnn_convert.language.convert import Options, spiking
from fastsnn_convert.language.distillation_data import tokens_of
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.rebuild import bypass_neurons
from fastsnn_convert.language.reference_eval import HeldOutReference
from fastsnn_core import create
from fastsnn_tune.criteria import criterion
from fastsnn_tune.silent_bytes import Measured, Setting, SilentBytes, at_loss

LOSSES = (0.01, 0.05)
FINE = 6.0  # k of the models whose inputs are silenced; the criteria try twice and four times as fine, too


def main() -> int:
    """Run, print JSON."""
    cache = Path(os.environ.get("FASTSNN_DATA_CACHE") or Path.home() / ".cache/fastsnn/smollm2")
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("folder", nargs="?", type=Path, default=cache / "hf")
    args.add_argument("--windows", type=int, default=8)
    args.add_argument("--criteria", default="teal,wina,spon,ours")
    args.add_argument("--data", type=Path, default=Path(os.environ.get("FASTSNN_DATA", "../shared/data")))
    opts = args.parse_args()
    if not (opts.folder / "config.json").is_file():
        print(
            f"{opts.folder} is no Hugging Face directory; bring the model first (README of benchmarks)", file=sys.stderr
        )
        return 2
    valid, test = (opts.data / "wikitext2" / f"{name}.txt" for name in ("valid", "test"))
    rows: dict[str, Any] = {"model": str(opts.folder.name), "windows": opts.windows, "load": os.getloadavg()}
    began, cpu = time.perf_counter(), time.process_time()
    done = convert(opts.folder, k=3.0, calibration=valid)
    rows["convert"] = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        "quality": done.report["quality"],
    }
    ids = tokens_of(test, done.model)
    x = ids[: opts.windows * 512].view(-1, 512)
    fit = tokens_of(valid, done.model)[:1024].view(2, 512)
    with bypass_neurons(done.model):
        held = HeldOutReference.of(done.model, x)
    rows["k3_calibrated"] = held.windows(done.model).figures()
    del done
    dense = import_dense(opts.folder)
    plain = Options(balance=False, centred=("attn_in", "attn_out", "ffn_in", "ffn_hidden"))
    base: Any = spiking(dense, create("neuron", "adaptive_threshold", k=FINE), plain)
    rows["criteria"] = {}
    for name in opts.criteria.split(","):
        chosen = criterion(name)
        if chosen.name in ("ours", "fisher"):
            base = convert(opts.folder, k=FINE, calibration=valid, measure=False, spread=False).model
        made = SilentBytes.of(base, chosen, fit)
        seen: list[tuple[Setting, Measured]] = []
        found = {f"{loss:g}": at_loss(made, held, loss, seen) for loss in LOSSES}
        rows["criteria"][name] = {
            "source": chosen.source,
            "at": {loss: None if row is None else attrs.asdict(row[1]) for loss, row in found.items()},
            "curve": [attrs.asdict(m) for _, m in sorted(seen, key=lambda s: s[1].silent_bytes)],
        }
        print(json.dumps({name: rows["criteria"][name]["at"]}), file=sys.stderr, flush=True)
        del made
    print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    torch.manual_seed(0)
    raise SystemExit(main())
