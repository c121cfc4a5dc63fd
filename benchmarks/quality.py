"""Held-out loss of spiking models beside the dense softmax transformer: same data, tokens, seeds; parameters ±2 %.

    FASTSNN_DATA=../shared/data python benchmarks/quality.py --rows runs/quality.jsonl [--minutes 8] [--only PATTERN …]
                                   [--png runs/quality.png] [--json out.json]

Byte-level decoders (d 96, 3 layers, 3 heads, windows of 64) on WikiText-2: trained on ``valid.txt``, evaluated on the
first 400 sequences of ``test.txt``; and on tinyshakespeare, the last tenth held out. Every run is the library's
`Trainer` with its defaults (AdamW, warm-up, cosine), the same batches in the same order for every model of a seed. The
plan: the bars (dense softmax, the hybrid with spikes, softmax with spikes) with 3 seeds on each text, then one seed of
the table attention × neuron. Each finished run is a line of ``--rows``; those that are there are not run
again, so that the plan can be done in pieces: ``--minutes`` stops after so long, ``--only`` takes runs whose name
(``wikitext2/hybrid/adaptive_threshold/0``) matches a pattern. ``--show`` only prints what there is.

Bars: hybrid with spikes (k = 3) at most 5 % above dense softmax in nats, softmax with spikes at most 2 %. A ratio is
the mean over seeds of the ratios of runs with the same seed; the spread of the dense runs says what a difference means.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import harness
import torch

from fastsnn_core import build, create

ATTENTIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "softmax": [("softmax", {})],
    "hybrid": [("gla", {}), ("sliding_window", {"window": 64})],
    "linear_alt": [("linear", {}), ("sliding_window", {"window": 64})],
    "sliding_window": [("sliding_window", {"window": 64})],
}
NEURONS = ("dense", "adaptive_threshold", "lif_sint", "ilif", "lif")
MAIN = (("softmax", "dense"), ("hybrid", "adaptive_threshold"), ("softmax", "adaptive_threshold"))
BARS = {("softmax", "adaptive_threshold"): 1.02, ("hybrid", "adaptive_threshold"): 1.05}
TEXTS = ("wikitext2", "tinyshakespeare")
Key = tuple[str, str, str, int]


def plan() -> list[Key]:
    """Runs in the order in which they matter: text, attention, neuron, seed."""
    bars = [(text, a, n, seed) for text in TEXTS for seed in range(3) for a, n in MAIN]
    table = [("wikitext2", a, n, 0) for a in ATTENTIONS for n in NEURONS]
    return bars + [key for key in table if key not in bars]


def network(attention: str, neuron: str) -> torch.nn.Module:
    mixers = tuple(create("attention", kind, **params) for kind, params in ATTENTIONS[attention])
    spikes = {"sites": ()} if neuron == "dense" else {"neuron": create("neuron", neuron)}
    return build(create("model", "decoder", d_model=96, n_layers=3, n_heads=3, attention=mixers, **spikes))


def text_of(name: str, length: int) -> Any:
    """Training and held-out bytes of a text."""
    from fastsnn_train import load_data
    from fastsnn_train.packing import Data

    folder = Path(os.environ.get("FASTSNN_DATA", "../shared/data"))
    if name == "tinyshakespeare":
        return load_data(str(folder / name / "input.txt"), seq_len=length, holdout=0.1)
    train, test = (
        load_data(str(folder / name / f"{part}.txt"), seq_len=length, holdout=0) for part in ("valid", "test")
    )
    return Data(train.train, test.train, train.tokenizer, train.note)


def run(key: Key, opts: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one model."""
    from fastsnn_train import TrainConfig, Trainer, evaluate

    text, attention, neuron, seed = key
    torch.manual_seed(seed)
    model, data = network(attention, neuron), text_of(text, opts.length)
    config = TrainConfig(
        max_steps=opts.steps, batch_size=opts.batch, lr=opts.lr, seed=seed, log_every=opts.steps // 6,
        eval_every=opts.steps // 6, eval_sequences=32, trackers=(),
    )  # fmt: skip
    begin = time.perf_counter()
    trainer = Trainer(model, config, quiet=True)
    trainer.fit(data)
    seconds = time.perf_counter() - begin
    found = evaluate(model, data.held_out, max_sequences=400)
    return {
        "name": "/".join(map(str, key)), "text": text, "attention": attention, "neuron": neuron, "seed": seed,
        "nats": found["nats_per_token"], "parameters": sum(p.numel() for p in model.parameters()), "seconds": seconds,
        "tokens": opts.steps * opts.batch * opts.length, "lr": opts.lr, "silent": found["silent_fraction"],
        "mean_count": found["mean_count"], "spikes_per_channel": found["spikes_per_channel"],
        "saturated": max((h.saturated for h in trainer.last_health.values()), default=0.0),
        "curve": [[r["step"] * opts.batch * opts.length, r["held_out"]] for r in trainer.history if "held_out" in r],
    }  # fmt: skip


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each text's main models over the dense softmax transformer, seed by seed."""
    found = {(r["text"], r["attention"], r["neuron"], r["seed"]): r for r in rows}
    result = []
    for text in TEXTS:
        dense = {s: found[text, *MAIN[0], s] for s in range(3) if (text, *MAIN[0], s) in found}
        for model in MAIN:
            mine = {s: found[text, *model, s] for s in dense if (text, *model, s) in found}
            if not mine:
                continue
            ratios = [mine[s]["nats"] / dense[s]["nats"] for s in mine]
            result.append(
                {
                    "text": text, "model": "/".join(model), "seeds": len(mine), "ratio": statistics.mean(ratios),
                    "nats": statistics.mean(r["nats"] for r in mine.values()), "worst": max(ratios),
                    "spread": max(r["nats"] for r in mine.values()) - min(r["nats"] for r in mine.values()),
                    "parameters": mine[min(mine)]["parameters"] / dense[min(mine)]["parameters"],
                    "bar": BARS.get(model), "silent": statistics.mean(r["silent"] for r in mine.values()),
                }
            )  # fmt: skip
    return result


def show(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = bars(rows)
    head = ["text, model", "seeds", "nats a byte", "spread", "x dense", "worst", "bar", "parameters", "silent"]
    print(harness.table(head, [
        [f"{r['text']} {r['model']}", r["seeds"], f"{r['nats']:.4f}", f"{r['spread']:.4f}", f"{r['ratio']:.4f}",
         f"{r['worst']:.4f}", r["bar"] or "-", f"{r['parameters']:.3f}", f"{r['silent']:.2f}"] for r in found
    ]))  # fmt: skip
    one = {(r["attention"], r["neuron"]): r for r in rows if r["text"] == "wikitext2" and r["seed"] == 0}
    print("\nwikitext2, seed 0: nats a byte (silent share)")
    print(harness.table(["attention", *NEURONS], [
        [a, *(f"{one[a, n]['nats']:.3f} ({one[a, n]['silent']:.2f})" if (a, n) in one else "-" for n in NEURONS)]
        for a in ATTENTIONS
    ]))  # fmt: skip
    return found


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Held-out loss over tokens: the mean of the seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    texts = [t for t in TEXTS if any(r["text"] == t for r in rows)]
    figure, axes = pyplot.subplots(1, len(texts), figsize=(5.5 * len(texts), 4), squeeze=False, layout="constrained")
    for axis, text in zip(axes[0], texts):
        for model in MAIN:
            mine = [r["curve"] for r in rows if r["text"] == text and (r["attention"], r["neuron"]) == model]
            if mine:
                tokens, values = (
                    [t / 1e3 for t, _ in mine[0]],
                    [[point[1] for point in points] for points in zip(*mine)],
                )
                label = {"dense": "dense"}.get(model[1], "spikes, k = 3")
                (line,) = axis.plot(tokens, [statistics.mean(v) for v in values], label=f"{model[0]}, {label}")
                axis.fill_between(tokens, [min(v) for v in values], [max(v) for v in values], alpha=0.2,
                                  color=line.get_color(), linewidth=0)  # fmt: skip
        axis.set(title=text, xlabel="training tokens, thousands", ylabel="held-out loss, nats a byte")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--rows", default="runs/quality.jsonl")
    args.add_argument("--only", nargs="+", default=["*"])
    args.add_argument("--minutes", type=float, default=float("inf"))
    args.add_argument("--show", action="store_true")
    args.add_argument("--steps", type=int, default=200)
    args.add_argument("--batch", type=int, default=8)
    args.add_argument("--length", type=int, default=256)
    args.add_argument("--lr", type=float, default=3e-3)
    args.add_argument("--png")
    args.add_argument("--json")
    opts = args.parse_args()
    path, begin = Path(opts.rows), time.perf_counter()
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    longest = 0.0
    for key in [] if opts.show else plan():
        name = "/".join(map(str, key))
        if any(r["name"] == name for r in rows) or not any(fnmatch.fnmatch(name, p) for p in opts.only):
            continue
        if time.perf_counter() - begin + longest > 60 * opts.minutes:
            print(f"out of time before {name}: run again to go on")
            break
        rows.append(run(key, opts))
        longest = max(longest, rows[-1]["seconds"] * 1.15)
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"{name}: {rows[-1]['nats']:.4f} nats, {rows[-1]['seconds']:.0f} s", flush=True)
    found = show(rows)
    if opts.png:
        draw(rows, opts.png)
    harness.emit({"bars": found, "rows": rows}, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
