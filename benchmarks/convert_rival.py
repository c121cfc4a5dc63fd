"""Language models converted, SpikingJelly's Qwen2 recipe run beside: perplexity and seconds at its own boundaries.

    python benchmarks/convert_rival.py --rival-python PYTHON [--times 8,16,32,64] [--windows 20] [--only rows,state]

stories260K; calibration on the first 60 % of the TinyStories text, evaluation on windows of 512 tokens spread over the
last 40 %, no start token: the same tokens for every row. Both sides spike where the rival's recipe does (embedding,
rotated q and k, v, MLP product; ours ``coverage="boundaries"``), one sequence at a time, one thread. The rival is
calibrated on 2/3 of the fitting windows, and its levels and quantile are the best on 20 of the others, by its own count
path; ours is calibrated by `convert` with its defaults. Rounds interleave: every window is read by every row in turn,
so seconds are of the same minutes, and time ratios are medians over windows.

*state*: bytes that a stream carries after 256 … 16384 tokens, the dense model's cache beside the hybrid's (gla and
sliding windows of 128 in turn, spikes on).

PYTHON is an interpreter with torch, spikingjelly and transformers; without one the rival's rows are null.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from convert_llm import SOURCE, texts
from harness import emit, table
from rival_spikingjelly import Rival, nats

from fastsnn_convert import convert
from fastsnn_convert.language.distillation_data import tokens_of, windows
from fastsnn_convert.language.families import import_dense
from fastsnn_core import load
from fastsnn_core.probe import probe
from fastsnn_core.state import nbytes
from fastsnn_train.evaluation.evaluate import SpikeTotals

OURS = {"S = 3": {"steps": 3}, "S = 4": {"steps": 4}, "S = 5": {"steps": 5}} | {
    f"k = {k}": {"k": float(k)} for k in (1, 2, 3, 6)
}
QUANTILES = "0.98,0.985,0.99,0.995,0.999,0.9995,0.9999,1.0"
LENGTHS = (256, 1024, 4096, 16384)
DEVELOPMENT = 20
HEAD = ["row", "perplexity", "ratio to dense", "µs per token", "x its dense", "silent", "spikes/channel"]


class Rows:
    """Every row on every window: `runs` maps a row to ``window number -> {seconds, nats}``."""

    def __init__(self, test: torch.Tensor) -> None:
        self.test, self.scored = test, test.shape[1] - 1
        self.runs: dict[str, Any] = {}
        self.found: dict[str, list[dict[str, float]]] = {}
        self.more: dict[str, dict[str, Any]] = {}

    def ours(self, name: str, model: Any, **more: Any) -> None:
        """A model of this process."""

        def window(number: int) -> dict[str, float]:
            x = self.test[number]
            began = time.perf_counter()
            logits = model(x[None])
            return {"seconds": time.perf_counter() - began, "nats": nats(logits[0], x)}

        self.runs[name], self.more[name] = window, more

    def measure(self) -> None:
        """One warm pass, then every window by every row, in an order that turns."""
        names = list(self.runs)
        for name in names:
            self.runs[name](0)
            self.found[name] = []
        for number in range(len(self.test)):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                self.found[name].append(self.runs[name](number))

    def row(self, name: str, dense: str) -> dict[str, Any]:
        """Figures of a row beside the dense model of its own side."""
        here, floor = self.found[name], self.found[dense]
        mean = sum(w["nats"] for w in here) / (len(here) * self.scored)
        base = sum(w["nats"] for w in floor) / (len(floor) * self.scored)
        return {
            "row": name, "perplexity": math.exp(mean), "ratio": math.exp(mean - base),
            "seconds_per_token": statistics.median(w["seconds"] for w in here) / self.test.shape[1],
            "x_dense": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(here, floor)),
        } | self.more[name]  # fmt: skip

    def faster(self, rival: str, ours: str) -> float:
        """How many times the rival's seconds are ours, window by window."""
        return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(self.found[rival], self.found[ours]))


def rows(opts: argparse.Namespace) -> dict[str, Any]:
    """Both sides."""
    fit, text = texts()
    dense = import_dense(SOURCE)
    held = windows(tokens_of([fit], dense), 512)
    test = windows(tokens_of([text], dense), 512)
    test = test[torch.linspace(0, len(test) - 1, min(opts.windows, len(test))).long()]
    found = Rows(test)
    found.ours("dense", dense)
    for name, options in OURS.items():
        model = converted(name, fit, options, opts.keep)
        with probe(model) as trace, torch.no_grad():
            model(test[:4])
        tally = SpikeTotals()
        tally.add(trace)
        figures = tally.figures()
        found.ours(name, model, **{k: figures[k] for k in ("silent_fraction", "spikes_per_channel", "steps")})
    rival, says = Rival.start(opts.rival_python)
    print(f"rival: {says}", flush=True)
    names = []
    if rival is not None:
        names = rival_rows(rival, found, held, opts)
    with torch.no_grad():
        found.measure()
    own = [found.row(name, "dense") for name in ("dense", *OURS)]
    theirs = [found.row(name, "dense (rival)") for name in names]
    show(found, own, theirs)
    pairs = compare(found, own, theirs)
    return {
        "windows": len(test), "tokens": len(test) * found.scored, "rival": says, "ours": own, "theirs": theirs or None,
        "pairs": pairs,
    }  # fmt: skip


def converted(name: str, fit: str, options: dict[str, Any], keep: str | None) -> Any:
    """A conversion at the rival's boundaries, or the bundle that an earlier run kept of it."""
    path = Path(keep or "", f"boundaries {name}.snn".replace(" ", ""))
    if keep and path.is_dir():
        return load(path).eval()
    done = convert(SOURCE, calibration=[fit], windows=40, coverage="boundaries", measure=False, quiet=True, **options)
    if keep:
        path.parent.mkdir(parents=True, exist_ok=True)
        done.save(path)
    return done.model


def rival_rows(rival: Rival, found: Rows, held: torch.Tensor, opts: argparse.Namespace) -> list[str]:
    """Load, calibrate, choose; the rows' names."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.pt"
        torch.save({"fit": held, "test": found.test}, path)
        same = rival.ask(
            verb="load", model=str(SOURCE), tokens=str(path), calibration=2 * len(held) // 3, development=DEVELOPMENT
        )
    print(f"as Qwen2 its logits are {same['logits']:.1e} from the Llama's", flush=True)

    def row(name: str, which: str, **more: Any) -> str:
        found.runs[name] = lambda number: rival.ask(verb="window", which=which, number=number)
        found.more[name] = more
        return name

    names = [row("dense (rival)", "dense")]
    for steps in map(int, opts.times.split(",")):
        quantiles = [float(q) for q in opts.quantiles.split(",")]
        best = rival.ask(verb="choose", steps=steps, levels=[steps], quantiles=quantiles)
        print(
            f"T = {steps}: levels {best['levels']}, quantile {best['quantile']} (on {DEVELOPMENT} windows)", flush=True
        )
        names.append(row(f"T = {steps}", str(steps), setting=best))
    return names


def show(found: Rows, own: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """The table."""
    lines = []
    for r in (*own, *theirs):
        cells = [r["row"], f"{r['perplexity']:.4f}", f"{r['ratio']:.4f}", f"{1e6 * r['seconds_per_token']:.1f}"]
        lines.append([*cells, r["x_dense"], r.get("silent_fraction", "-"), r.get("spikes_per_channel", "-")])
    print(f"{len(found.test)} windows, {len(found.test) * found.scored} tokens scored\n" + table(HEAD, lines))


def compare(found: Rows, own: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every row of the rival ours with the fewest spikes that is no worse."""
    pairs = []
    for r in theirs[1:]:
        fit = [o for o in own[1:] if o["ratio"] <= r["ratio"]]
        if not fit:
            print(f"{r['row']} ({r['ratio']:.4f}): no row of ours is as good")
            continue
        o = min(fit, key=lambda o: o["spikes_per_channel"])
        times = found.faster(r["row"], o["row"])
        pairs.append({"rival": r["row"], "ours": o["row"], "ratios": [r["ratio"], o["ratio"]], "times_slower": times})
        print(f"{r['row']} ({r['ratio']:.4f}): ours {o['row']} ({o['ratio']:.4f}); it takes {times:.1f} x our seconds")
    return pairs


@torch.no_grad()
def state() -> dict[str, dict[int, int]]:
    """Bytes of a stream's state after so many tokens, read in pieces of 256."""
    fit, _ = texts()
    done = convert(
        SOURCE, calibration=[fit], windows=10, k=3.0, attention="hybrid_alt", attention_window=128, balance=False,
        spread=False, measure=False, quiet=True,
    )  # fmt: skip
    tokens = tokens_of([fit], done.model)
    tokens = tokens.repeat(-(-LENGTHS[-1] // len(tokens)))[: LENGTHS[-1]]
    found: dict[str, dict[int, int]] = {}
    for name, model in {"dense": import_dense(SOURCE), "hybrid": done.model}.items():
        carried, found[name] = None, {}
        for end in range(256, LENGTHS[-1] + 1, 256):
            _, carried = model(tokens[None, end - 256 : end], carried, return_state=True, last=True)
            if end in LENGTHS:
                found[name][end] = nbytes(carried)
    print(
        "\nbytes of a stream's state\n"
        + table(["tokens", *found], [[n, *(f[n] for f in found.values())] for n in LENGTHS])
    )
    return found


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--rival-python", default=os.environ.get("FASTSNN_RIVAL_PYTHON"), help="the rival's interpreter")
    args.add_argument("--times", default="8,16,32,64", help="the rival's time steps")
    args.add_argument("--quantiles", default=QUANTILES, help="the rival's calibration quantiles to choose from")
    args.add_argument("--windows", type=int, default=20, help="test windows of 512 tokens")
    args.add_argument("--only", default="rows,state", help="rows, state, convert (only fill --keep), with commas")
    args.add_argument("--keep", help="a folder for the converted bundles; those in it are not made again")
    args.add_argument("--json", help="write the figures here")
    opts = args.parse_args()
    if not SOURCE.is_dir():
        raise SystemExit(f"no {SOURCE}; set FASTSNN_DATA")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if "convert" in opts.only.split(","):
        for name, options in OURS.items():
            converted(name, texts()[0], options, opts.keep)
    if "rows" in opts.only.split(","):
        found["rows"] = rows(opts)
    if "state" in opts.only.split(","):
        found["state"] = state()
    emit(found, opts.json)


if __name__ == "__main__":
    main()
