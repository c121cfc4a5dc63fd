"""Held-out loss of spiking models beside the dense softmax transformer: same data, tokens, seeds; parameters ±2 %.

    FASTSNN_DATA=../shared/data python benchmarks/quality.py --rows runs/quality.jsonl [--minutes 8] [--only PATTERN …]
                                   [--rates 3e-3 6e-3 1.2e-2] [--png runs/quality.png] [--json out.json]

Byte-level decoders (d 96, 3 layers, 3 heads, windows of 64) on WikiText-2: trained on ``valid.txt``, evaluated on the
first 400 sequences of ``test.txt``; and on tinyshakespeare, the last tenth held out. Every run is the library's
`Trainer` with its defaults (AdamW, warm-up, cosine), the same batches in the same order for every model of a seed.

No model's bar hangs on another's learning rate: each is first trained once (seed 9) at every one of ``--rates`` on the
WikiText-2 text without its last tenth, and that tenth chooses its rate (for both texts); the three seeds then train on
the whole training text at the chosen rate, and only they see the evaluation text. The same at one shared rate
(``--lr``) follows, then one seed of the table attention × neuron at that rate. Each finished run is a line of
``--rows`` (with the commit it is of); those that are there are not run again, so that the plan can be done in pieces:
``--minutes`` stops after so long, ``--only`` takes runs whose name (``wikitext2/hybrid/adaptive_threshold/0/0.003``,
``…/choose/0.003``) matches a pattern. ``--show`` only prints what there is.

Bars: hybrid with spikes (k = 3) at most 5 % above dense softmax in nats, softmax with spikes at most 2 %. A ratio is
the mean over seeds of the ratios of runs with the same seed; the spread of the dense runs says what a difference means.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
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
CHOOSE, CHOOSING_SEED = "choose", 9
Key = tuple[str, str, str, int | str, float]
Rows = list[dict[str, Any]]


def plan(rows: Rows, opts: argparse.Namespace) -> Iterator[Key]:
    """Runs in the order in which they matter: text, attention, neuron, seed, rate; a rate is chosen as `rows` grows."""
    for a, n in MAIN:
        yield from ((TEXTS[0], a, n, CHOOSE, rate) for rate in opts.rates)
    for text in TEXTS:
        for seed in range(3):
            for model in MAIN:
                rate = chosen(rows, model, opts.rates)
                if rate is not None:
                    yield text, *model, seed, rate
    for text in TEXTS:
        yield from ((text, a, n, seed, opts.lr) for seed in range(3) for a, n in MAIN)
    yield from ((TEXTS[0], a, n, 0, opts.lr) for a in ATTENTIONS for n in NEURONS)


def chosen(rows: Rows, model: tuple[str, str], rates: list[float]) -> float | None:
    """The rate with the lowest loss on the part kept for choosing; None until every rate has been tried."""
    tried = {r["lr"]: r["nats"] for r in rows if (r["text"], r["attention"], r["neuron"]) == (TEXTS[0], *model)
             and r["seed"] == CHOOSE and r["lr"] in rates}  # fmt: skip
    return min(tried, key=tried.__getitem__) if len(tried) == len(rates) else None


def name_of(key: Key) -> str:
    """``wikitext2/hybrid/adaptive_threshold/0/0.003``."""
    return "/".join([*map(str, key[:-1]), f"{key[-1]:g}"])


def commit() -> str:
    """What the figures are of."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def network(attention: str, neuron: str) -> torch.nn.Module:
    mixers = tuple(create("attention", kind, **params) for kind, params in ATTENTIONS[attention])
    spikes = {"sites": ()} if neuron == "dense" else {"neuron": create("neuron", neuron)}
    return build(create("model", "decoder", d_model=96, n_layers=3, n_heads=3, attention=mixers, **spikes))


def text_of(name: str, length: int, choosing: bool) -> Any:
    """Training and evaluation bytes of a text; for choosing a rate both are of the training text."""
    from fastsnn_train import load_data
    from fastsnn_train.data.packing import Data

    folder = Path(os.environ.get("FASTSNN_DATA", "../shared/data"))
    if name == "tinyshakespeare":
        data = load_data(str(folder / name / "input.txt"), seq_len=length, holdout=0.1)
    else:
        train, test = (
            load_data(str(folder / name / f"{part}.txt"), seq_len=length, holdout=0) for part in ("valid", "test")
        )
        data = Data(train.train, test.train, train.tokenizer, train.note)
    if not choosing:
        return data
    whole = data.train
    cut = len(whole.tokens) * 9 // 10
    return Data(whole.part(0, cut), whole.part(cut, len(whole.tokens)), data.tokenizer, data.note)


def run(key: Key, opts: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one model."""
    from fastsnn_train import TrainConfig, Trainer, evaluate

    text, attention, neuron, seed, rate = key
    number = CHOOSING_SEED if isinstance(seed, str) else seed
    torch.manual_seed(number)
    model, data = network(attention, neuron), text_of(text, opts.length, choosing=seed == CHOOSE)
    config = TrainConfig(
        max_steps=opts.steps, batch_size=opts.batch, lr=rate, seed=number, log_every=opts.steps // 6,
        eval_every=opts.steps // 6, eval_sequences=32, trackers=(),
    )  # fmt: skip
    begin = time.perf_counter()
    trainer = Trainer(model, config, quiet=True)
    trainer.fit(data)
    seconds = time.perf_counter() - begin
    found = evaluate(model, data.held_out, max_sequences=400)
    return {
        "name": name_of(key), "text": text, "attention": attention, "neuron": neuron, "seed": seed,
        "nats": found["nats_per_token"], "parameters": sum(p.numel() for p in model.parameters()), "seconds": seconds,
        "tokens": opts.steps * opts.batch * opts.length, "lr": rate, "silent": found["silent_fraction"],
        "mean_count": found["mean_count"], "spikes_per_channel": found["spikes_per_channel"], "commit": commit(),
        "saturated": max((h.saturated for h in trainer.last_health.values()), default=0.0),
        "curve": [[r["step"] * opts.batch * opts.length, r["held_out"]] for r in trainer.history if "held_out" in r],
    }  # fmt: skip


def bars(rows: Rows, opts: argparse.Namespace) -> list[dict[str, Any]]:
    """Each text's main models over the dense softmax transformer, by seed: at their own rates, at one shared."""
    found = {(r["text"], r["attention"], r["neuron"], r["seed"], r["lr"]): r for r in rows}
    result = []
    for text, own in [(t, own) for own in (True, False) for t in TEXTS]:
        rates = {m: chosen(rows, m, opts.rates) if own else opts.lr for m in MAIN}
        dense = {s: found[k] for s in range(3) if (k := (text, *MAIN[0], s, rates[MAIN[0]])) in found}
        for model in MAIN:
            mine = {s: found[k] for s in dense if (k := (text, *model, s, rates[model])) in found}
            if not mine:
                continue
            ratios = [mine[s]["nats"] / dense[s]["nats"] for s in mine]
            result.append(
                {
                    "text": text, "model": "/".join(model), "seeds": len(mine), "ratio": statistics.mean(ratios),
                    "nats": statistics.mean(r["nats"] for r in mine.values()), "worst": max(ratios),
                    "spread": max(r["nats"] for r in mine.values()) - min(r["nats"] for r in mine.values()),
                    "parameters": mine[min(mine)]["parameters"] / dense[min(mine)]["parameters"], "lr": rates[model],
                    "rate": "own" if own else "shared", "tokens": mine[min(mine)]["tokens"],
                    "commits": sorted({r.get("commit", "?") for r in mine.values()}), "bar": BARS.get(model),
                    "silent": statistics.mean(r["silent"] for r in mine.values()),
                }
            )  # fmt: skip
    return result


def show(rows: Rows, opts: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates tried, bars, and the table."""
    print("rates tried on the last tenth of the WikiText-2 training text, nats a byte")
    nats = {r["name"]: f"{r['nats']:.4f}" for r in rows}
    print(harness.table(["model", *(f"{rate:g}" for rate in opts.rates), "chosen"], [
        [f"{a}/{n}", *(nats.get(name_of((TEXTS[0], a, n, CHOOSE, rate)), "-") for rate in opts.rates),
         chosen(rows, (a, n), opts.rates) or "-"] for a, n in MAIN
    ]))  # fmt: skip
    found = bars(rows, opts)
    head = ["text, model", "rate", "seeds", "nats a byte", "spread", "x dense", "worst", "bar", "parameters", "silent"]
    print(harness.table(head, [
        [f"{r['text']} {r['model']}", f"{r['rate']} {r['lr']:g}", r["seeds"], f"{r['nats']:.4f}", f"{r['spread']:.4f}",
         f"{r['ratio']:.4f}", f"{r['worst']:.4f}", r["bar"] or "-", f"{r['parameters']:.3f}", f"{r['silent']:.2f}"]
        for r in found
    ]))  # fmt: skip
    here = [r for r in rows if r["text"] == TEXTS[0] and r["seed"] == 0 and r["lr"] == opts.lr]
    one = {(r["attention"], r["neuron"]): r for r in here}
    print(f"\n{TEXTS[0]}, seed 0, rate {opts.lr:g}: nats a byte (silent share)")
    print(harness.table(["attention", *NEURONS], [
        [a, *(f"{one[a, n]['nats']:.3f} ({one[a, n]['silent']:.2f})" if (a, n) in one else "-" for n in NEURONS)]
        for a in ATTENTIONS
    ]))  # fmt: skip
    print("commits: " + ", ".join(sorted({r.get("commit", "?") for r in rows})))
    return found


def draw(rows: Rows, opts: argparse.Namespace) -> None:
    """Held-out loss over tokens at each model's own rate (at the shared one until all are chosen): mean and range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    texts = [t for t in TEXTS if any(r["text"] == t for r in rows)]
    own = all(chosen(rows, model, opts.rates) for model in MAIN)
    figure, axes = pyplot.subplots(1, len(texts), figsize=(5.5 * len(texts), 4), squeeze=False, layout="constrained")
    for axis, text in zip(axes[0], texts):
        for model in MAIN:
            rate = chosen(rows, model, opts.rates) if own else opts.lr
            mine = [r["curve"] for r in rows if (r["text"], r["attention"], r["neuron"]) == (text, *model)
                    and r["lr"] == rate and r["seed"] != CHOOSE]  # fmt: skip
            if mine:
                tokens, values = (
                    [t / 1e3 for t, _ in mine[0]],
                    [[point[1] for point in points] for points in zip(*mine)],
                )
                label = f"{model[0]}, {'dense' if model[1] == 'dense' else 'spikes, k = 3'}, rate {rate:g}"
                (line,) = axis.plot(tokens, [statistics.mean(v) for v in values], label=label)
                axis.fill_between(tokens, [min(v) for v in values], [max(v) for v in values], alpha=0.2,
                                  color=line.get_color(), linewidth=0)  # fmt: skip
        axis.set(title=text, xlabel="training tokens, thousands", ylabel="held-out loss, nats a byte")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(opts.png, dpi=110)
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
    args.add_argument("--lr", type=float, default=3e-3, help="the rate shared by all")
    args.add_argument("--rates", type=float, nargs="+", default=[3e-3, 6e-3, 1.2e-2], help="tried for each model")
    args.add_argument("--png")
    args.add_argument("--json")
    opts = args.parse_args()
    path, begin = Path(opts.rows), time.perf_counter()
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    longest = 0.0
    for key in [] if opts.show else plan(rows, opts):
        name = name_of(key)
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
    found = show(rows, opts)
    if opts.png:
        draw(rows, opts)
    harness.emit({"bars": found, "rows": rows}, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
