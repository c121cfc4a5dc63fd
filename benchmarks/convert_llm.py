"""Language models converted: perplexity against k and steps, calibrated, healed, and with other attentions.

    python benchmarks/convert_llm.py [--only plain,calibrated,…] [--heal-steps 1500] [--keep DIR] [--plot FILE]

The network is stories260K (a Llama that nobody here trained; 260K parameters, 5 layers, d = 64). Its text is 197 KB of
TinyStories: the first 60 % of the characters to calibrate and heal on, the last 40 % to evaluate on, in windows of 512
tokens that are read afresh, no start token. Ratios are of perplexity to the dense model's on the same tokens.

Coverage: *projections* has spikes at the input of all seven projections of every layer; *boundaries* has them where
SpikingJelly's Qwen2 recipe has (embedding, rotated q and k, v, MLP product), other inputs stay numbers. S is the number
of binary digits that every count fits; "burst b" lets b channels of a token need more, and `most` is what the largest
count then took. Spikes are the binary digits of the counts. Rows with ``kl`` were healed: `cpu` is the seconds of
processor time that this took on one thread.

SpikingJelly's figures are those of its best settings on this model and text (a sweep made for issue 3), quoted, not run
again here: its recipe takes 100 times the dense model's time at T = 32.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from harness import emit, pieces_of, table

from fastsnn_convert import convert
from fastsnn_convert.language.distillation import heal
from fastsnn_convert.language.families import import_dense
from fastsnn_text import Sampling, generate_text
from fastsnn_train import evaluate_text

DATA = Path(os.environ.get("FASTSNN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SOURCE = DATA / "stories260k" / "hf"
RIVAL = {4: 7.9, 8: 2.1, 16: 1.22, 32: 1.043, 64: 1.015, 160: 1.003}
TRIALS = {("k", 1): 1.73, ("k", 2): 1.10, ("k", 3): 1.04, ("k", 6): 1.01, ("S", 3): 1.35, ("S", 4): 1.052,
          ("S", 5): 1.014, ("S", 6): 1.004}  # fmt: skip
HEAD = ["what", "coverage", "ratio", "perplexity", "silent", "spikes/channel", "mean count", "most", "cpu s"]
HEALED: dict[str, dict[str, Any]] = {
    "heal-s4": {"steps": 4},
    "heal-s4-burst": {"steps": 4, "burst": 4},
    "heal-s3": {"steps": 3},
    "heal-s3-burst": {"steps": 3, "burst": 4},
    "heal-k1": {"k": 1.0},
    "heal-sparse": {"k": 0.55},
    "hybrid": {"k": 3.0, "attention": "hybrid_alt", "place": "sensitivity", "attention_window": 128},
}
CURVE = (3.0, 2.0, 1.0, 0.75, 0.55)
LONGER = {"hybrid": {"batch": 8, "length": 256}}  # new attentions must learn to remember
PIECES = ("plain", "calibrated", "burst", "boundaries", *HEALED, "curve")


def texts() -> tuple[str, str]:
    """The first 60 % of the characters, and the last 40 %."""
    text = (DATA / "tinystories_text" / "tinystories_197k.txt").read_text(encoding="utf-8")
    cut = int(0.6 * len(text))
    return text[:cut], text[cut:]


class Bench:
    """Rows of one run."""

    def __init__(self, opts: argparse.Namespace) -> None:
        self.opts = opts
        self.fit, self.test = texts()
        self.dense = import_dense(SOURCE)
        self.floor = evaluate_text(self.dense, self.test, seq_len=512)["perplexity"]
        self.rows: list[dict[str, Any]] = []
        self.stories: dict[str, str] = {}

    def convert(self, **options: Any) -> Any:
        """A conversion, measured here and not by itself."""
        return convert(SOURCE, calibration=[self.fit], windows=self.opts.windows, measure=False, quiet=True, **options)

    def add(self, what: str, done: Any, began: float, **more: Any) -> dict[str, Any]:
        """Evaluate, print and keep a row."""
        cpu = time.process_time() - began
        found = evaluate_text(done.model, self.test, seq_len=512)
        row = {"what": what, "coverage": done.report["coverage"], "ratio": found["perplexity"] / self.floor, "cpu": cpu}
        row |= {k: found[k] for k in ("perplexity", "silent_fraction", "spikes_per_channel", "mean_count", "steps")}
        row |= more
        self.rows.append(row)
        cells = [what, row["coverage"], f"{row['ratio']:.4f}", f"{row['perplexity']:.3f}"]
        cells += [f"{row['silent_fraction']:.1%}", f"{row['spikes_per_channel']:.2f}", f"{row['mean_count']:.2f}"]
        print(table(HEAD, [[*cells, row["steps"], f"{cpu:.0f}"]]).splitlines()[1], flush=True)
        return row

    def untrained(self, piece: str) -> None:
        """Rows without training."""
        for kind, values in (("k", (1, 2, 3, 6)), ("S", (3, 4, 5, 6))):
            for n in values:
                if self.opts.match and self.opts.match != f"{kind}{n}":
                    continue
                options: dict[str, Any] = {"k": float(n)} if kind == "k" else {"steps": n}
                if piece == "plain":
                    options |= {"balance": False, "spread": False}
                elif piece == "burst":
                    if kind == "k":
                        continue
                    options["burst"] = self.opts.burst
                elif piece == "boundaries":
                    options["coverage"] = "boundaries"
                began = time.process_time()
                self.add(f"{piece} {kind} = {n}", self.convert(**options), began, first_trial=TRIALS.get((kind, n)))

    def healed(self, piece: str) -> None:
        """A row after healing, and a story."""
        began = time.process_time()
        done = self.convert(**HEALED[piece])
        before = evaluate_text(done.model, self.test, seq_len=512)["perplexity"] / self.floor
        minutes = self.opts.heal_minutes
        budget = {"minutes": minutes} if minutes else {"steps": self.opts.heal_steps}
        settings = budget | {"batch": self.opts.batch, "length": self.opts.length}
        settings |= {"lr": self.opts.lr, "hidden": self.opts.hidden}
        settings |= {k: v for k in ("written", "altered", "fall") if (v := getattr(self.opts, k)) is not None}
        settings |= LONGER.get(piece, {})
        kept = {"out": Path(self.opts.keep) / piece, "resume": True} if self.opts.keep else {}
        began_healing = time.process_time()
        history = heal(done.model, SOURCE, [self.fit], log=100, quiet=self.opts.quiet, **settings, **kept)
        cpu = time.process_time() - began_healing
        row = self.add(f"{piece} {HEALED[piece]}", done, began, before=before, kl=history[-1]["kl"])
        row |= {"healing_cpu": cpu, "history": history, "settings": settings}
        row["attention"] = [a.name for a in done.model.spec.attention]
        print(f"  before healing {before:.4f}; healing took {cpu:.0f} s of one core, {settings}; {row['attention']}")
        story = generate_text(done.model, "Once upon a time", 120, Sampling(temperature=0.7, seed=1))
        row["story"] = "Once upon a time" + "".join(story)
        print(f"  a story: {row['story']!r}", flush=True)
        if self.opts.keep:
            done.save(Path(self.opts.keep) / f"{piece}.snn")

    def curve(self) -> None:
        """Quality against silence: a k each, calibrated, then healed for `curve_steps`."""
        for k in CURVE:
            if self.opts.match and self.opts.match != f"k{k:g}":
                continue
            began = time.process_time()
            done = self.convert(k=k)
            self.add(f"curve k = {k:g}", done, began, k=k, healed=False)
            settings = {"steps": self.opts.curve_steps, "batch": self.opts.batch, "length": self.opts.length}
            heal(done.model, SOURCE, [self.fit], quiet=self.opts.quiet, lr=self.opts.lr, **settings)
            self.add(f"curve k = {k:g} healed", done, began, k=k, healed=True, settings=settings)
            if self.opts.plot:  # what there is so far
                self.plot(self.opts.plot)

    def plot(self, path: str) -> None:
        """Ratio against silent fraction, calibrated and healed, as an image."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        for healed, mark, colour in ((False, "o--", "tab:grey"), (True, "o-", "tab:blue")):
            rows = [r for r in self.rows if r.get("healed") is healed]
            x = [100 * r["silent_fraction"] for r in rows]
            label = "calibrated" if not healed else f"healed, {self.opts.curve_steps} steps"
            axes.plot(x, [r["ratio"] for r in rows], mark, color=colour, label=label)
            for at, row in zip(x, rows):
                beside, side = ((6, -12), "left") if healed else ((-6, 6), "right")
                axes.annotate(f"k = {row['k']:g}", (at, row["ratio"]), beside, textcoords="offset points", ha=side)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xlabel("silent channels, %")
        axes.set_ylabel("perplexity / dense perplexity")
        axes.set_title("stories260K with spikes before every projection")
        axes.margins(0.12, 0.12)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=120)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--only", help=f"pieces, with commas, out of {', '.join(PIECES)}")
    args.add_argument("--match", help="of the rows without training, or of the curve, only this one: k1, S4, …")
    args.add_argument("--windows", type=int, default=40, help="windows of text to calibrate on (4/5 of them)")
    args.add_argument("--burst", type=int, default=2, help="channels of a token that may burst, in the piece burst")
    args.add_argument("--heal-steps", type=int, default=1500)
    args.add_argument("--heal-minutes", type=float, help="instead, of wall time")
    args.add_argument("--batch", type=int, default=8)
    args.add_argument("--length", type=int, default=128)
    args.add_argument("--lr", type=float, default=1e-3)
    args.add_argument("--hidden", type=float, default=10.0, help="weight of the hidden states")
    args.add_argument("--written", type=float, help="share of a batch that the teacher writes")
    args.add_argument("--altered", type=float, help="share of words of the given text that are exchanged")
    args.add_argument("--fall", type=float, help="share of healing over which its rate falls")
    args.add_argument("--curve-steps", type=int, default=400, help="healing steps of each point of the piece curve")
    args.add_argument("--plot", help="draw the piece curve into this PNG")
    args.add_argument("--keep", help="a folder for checkpoints of healing (it goes on from there) and healed bundles")
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--quiet", action="store_true", help="no progress")
    args.add_argument("--json", help="write the figures here")
    opts = args.parse_args()
    if not SOURCE.is_dir():
        raise SystemExit(f"no {SOURCE}; set FASTSNN_DATA")
    pieces = pieces_of(opts.only, PIECES)
    torch.set_num_threads(opts.threads)
    bench = Bench(opts)
    print(f"dense: perplexity {bench.floor:.4f} (ratio 1)")
    print("SpikingJelly, boundaries, quoted: " + ", ".join(f"T = {t} {r}" for t, r in RIVAL.items()))
    print("  ".join(HEAD))
    for piece in pieces:
        if piece == "curve":
            bench.curve()
        else:
            (bench.healed if piece in HEALED else bench.untrained)(piece)
    found = {"dense": bench.floor, "rows": bench.rows, "spikingjelly_quoted": RIVAL}
    goals(found)
    emit(found, opts.json)


def goals(found: dict[str, Any]) -> None:
    """What the project asks for, of the rows that were run."""
    wanted = {
        "calibrated S = 5": 1.01, "burst S = 5": 1.01, "calibrated S = 4": 1.035, "burst S = 4": 1.035,
        "heal-s4": 1.01, "heal-s4-burst": 1.01, "heal-s3": 1.08, "heal-k1": 1.15, "hybrid": 1.10,
    }  # fmt: skip
    found["goals"] = {}
    for name, most in wanted.items():
        hits = [r for r in found["rows"] if r["what"] == name or r["what"].startswith(f"{name} ")]
        if hits and math.isfinite(ratio := hits[0]["ratio"]):
            found["goals"][name] = [ratio, most, ratio <= most]
            print(f"{name}: {ratio:.4f}, at most {most}: {'met' if ratio <= most else 'NOT met'}")


if __name__ == "__main__":
    main()
