"""From 512 to 4096 tokens: what each way of extending a context keeps of perplexity and of recall.

    python benchmarks/extend.py [--seeds 3] [--methods carry,long,…] [--png runs/extend.png] [--json out.json]

A small spiking decoder (a window of 8 tokens, then a gated-linear layer that begins with long half-lives, adaptive
thresholds) is trained at 512 tokens on Shakespeare in lower case, with a fact (#K7) stored in the first half of every
block and asked for (?K) twice behind it. Only twice: every question is followed by its answer, and a model that is
asked all along learns to copy the last answer, which needs no memory. That is how the first `--first` steps begin all
the same, on blocks of an eighth, where it learns what to store and to look up.

Then each method goes on from the same weights and moments, for as many steps, through 1024 and 2048 to 4096 tokens.
Perplexity is of the same held-out text at every place; recall is `fastsnn_train.evaluation.recall`'s mqar with one
pair, in
held-out text, and of carry, long and pass it is what `extend_context` itself reports; chance is 10 %. Beside it a model
with windows alone, trained the same way: its two layers reach 14 tokens back. Bars: carry's perplexity at 2k–4k no
worse than the un-extended model's at 256–512; its recall at 2048 tokens at least 90 %.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import harness
import numpy as np
import torch

from fastsnn_core import build, create
from fastsnn_text import ByteTokenizer, attach
from fastsnn_train import Data, TrainConfig, Trainer, extend_context
from fastsnn_train.data.packing import Packed
from fastsnn_train.evaluation.recall import Question, Recall, draw_heat_map, mqar, recall
from fastsnn_train.extend.reshape import adopt

DENSITY, EASIER = 6, 8  # the first steps: tokens per question, and how many times shorter their blocks are
SAMPLES = 8  # texts of every length and depth
HYBRID = ("sliding_window", "gla")  # the window binds a value to its key, the linear layer keeps it
METHODS = ("carry", "short", "rope", "pass", "long", "decay")


@attrs.frozen
class Sizes:
    """From `old` to eight times as many tokens, with windows of `window`; perplexity is of the same `text` tokens."""

    old: int = 512
    window: int = 8
    text: int = 16384

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.old << i for i in range(4))

    @property
    def new(self) -> int:
        return self.lengths[-1]

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        return tuple((n // 2, n) for n in self.lengths)


def one_fact(rng: np.random.Generator, encode: Callable[[str], list[int]]) -> Question:
    """One letter with its digit."""
    return mqar(rng, encode, pairs=1)


@attrs.frozen(eq=False)
class Blocks(Packed):
    """Text in blocks of `seq_len`, a fact in the first half of each, and asked for behind it: twice, or every `old`.

    The batches of the `first` steps are of blocks of an eighth, full of questions.
    """

    old: int = 512
    first: int = 0

    def batch(self, step: int, size: int, seed: int) -> torch.Tensor:
        length, questions, rows = self.seq_len, max(2, self.seq_len // self.old), size
        if step < self.first:
            length, questions, rows = length // EASIER, length // EASIER // DENSITY, size * EASIER
        return torch.stack([self.make(np.random.default_rng([seed, step, i]), length, questions) for i in range(rows)])

    def block(self, i: int) -> torch.Tensor:
        return self.make(np.random.default_rng([7, i]), self.seq_len, max(2, self.seq_len // self.old))

    def make(self, rng: np.random.Generator, length: int, questions: int) -> torch.Tensor:
        start = int(rng.integers(len(self.tokens) - length - 1))
        ids = self.tokens[start : start + length + 1].astype(np.int64)
        asked = one_fact(rng, ByteTokenizer().encode)
        place = int(rng.integers(1, length // 2))
        ids[place : place + len(asked.fact)] = asked.fact
        size, behind = len(asked.end), place + len(asked.fact)
        for at in behind + np.sort(rng.integers(0, length - behind - size, questions)):
            ids[at : at + size] = asked.end
        return torch.from_numpy(ids)


def corpus(sizes: Sizes, first: int) -> tuple[Data, torch.Tensor, str]:
    """Training blocks, plain held-out text for perplexity, and text around the facts of the recall test."""
    root = Path(os.environ.get("FASTSNN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    files = sorted((root / "tinyshakespeare").glob("*.txt"))
    assert files, f"no tinyshakespeare under {root}; set FASTSNN_DATA"
    text = max((f.read_text() for f in files), key=len).lower().replace("#", "").replace("?", "")
    bytes_ = np.frombuffer(text.encode("ascii", "ignore"), np.uint8)
    cut = int(0.9 * len(bytes_))
    train = Blocks(bytes_[:cut], sizes.old, old=sizes.old, first=first)
    held = Blocks(bytes_[cut:], sizes.old, old=sizes.old)
    return (
        Data(train, held, ByteTokenizer()),
        torch.from_numpy(bytes_[cut:].astype(np.int64)),
        bytes_[cut:].tobytes().decode(),
    )


def make(seed: int, kinds: tuple[str, ...], opts: argparse.Namespace) -> torch.nn.Module:
    """A decoder of two layers."""
    torch.manual_seed(seed)
    options = {"sliding_window": {"window": opts.window}, "gla": {"tau": opts.tau, "reach": opts.reach}}
    rows = tuple(create("attention", k, **options[k]) for k in kinds)
    model = build(create("model", "decoder", d_model=opts.dim, n_layers=2, n_heads=opts.heads, attention=rows))
    attach(model, ByteTokenizer())
    return model


@torch.inference_mode()
def perplexity(model: torch.nn.Module, text: torch.Tensor, low: int, high: int, sizes: Sizes) -> float:
    """Of the same `sizes.text` tokens, each at a place between `low` and `high` of what the model has read."""
    model.eval()
    starts = [sizes.new + begin - low for begin in range(0, sizes.text, high - low)]
    total = 0.0
    for begin in range(0, len(starts), 8):
        tokens = torch.stack([text[s : s + high + 1] for s in starts[begin : begin + 8]])
        logits = model(tokens[:, :-1])[:, low:]
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, low + 1 :].flatten(), reduction="sum")
        )
    return math.exp(total / sizes.text)


def judge(
    model: torch.nn.Module, plain: torch.Tensor, filler: str, sizes: Sizes, found: Recall | None = None
) -> dict[str, Any]:
    """Perplexity by bucket; recall by length and depth, unless it was measured already."""
    found = found or recall(model, one_fact, lengths=sizes.lengths, samples=SAMPLES, filler=filler)
    return {
        "perplexity": {f"{a}–{b}": perplexity(model, plain, a, b, sizes) for a, b in sizes.buckets},
        "recall": {str(n): found.at(n) for n in sizes.lengths},
        "grid": found.table(),
    }


def extended(
    trainer: Trainer, model: Any, data: Data, filler: str, method: str, opts: argparse.Namespace, sizes: Sizes
) -> tuple[float, Recall | None]:
    """Go on from a trained model in one way; seconds of it, and the recall that `extend_context` reports."""
    began = time.perf_counter()
    if method == "rope":
        adopt(model, attrs.evolve(model.spec, rope=attrs.evolve(model.spec.rope, theta=model.spec.rope.theta * 8)))
    elif method == "short":
        config = attrs.evolve(trainer.config, max_steps=trainer.step + opts.extend, lr=opts.extend_lr, warmup=0.0)
        more = Trainer(model, config, quiet=True)
        more.stepper.optimizer.load_state_dict(trainer.optimizer.state_dict())
        more.step = trainer.step
        for step in range(opts.extend):
            more.train_step(data.train.batch(step, config.batch_size, 1))
        model.eval()
    else:
        stages = sizes.lengths[1:] if method != "decay" else sizes.lengths[-1:]
        proof = extend_context(
            model, trainer, new_seq_len=stages, max_steps=opts.extend // len(stages), mode=method, data=data,
            lr=opts.extend_lr, recall=(one_fact,), recall_samples=SAMPLES, filler=filler, eval_sequences=1, quiet=True,
        )  # fmt: skip
        found = proof.grids["one_fact"][1]
        return proof["seconds"], found if found.lengths == sizes.lengths else None
    return time.perf_counter() - began, None


def trained(name: str, seed: int, kinds: tuple[str, ...], opts: argparse.Namespace, data: Data) -> Trainer:
    """A model trained at the old length; one that was interrupted goes on."""
    config = TrainConfig(
        max_steps=opts.steps,
        batch_size=opts.batch,
        lr=opts.lr,
        seed=seed,
        warmup=0.1,
        eval_sequences=8,
        log_every=100,
        checkpoint_every=100,
    )
    return Trainer(make(seed, kinds, opts), config, out=Path(opts.keep, f"{name}-{seed}"), quiet=True).fit(
        data, resume=True
    )


def run(seed: int, opts: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """One seed: train, then every method from the same point. Rows that are kept already are not done again."""
    lessons, plain, filler = corpus(sizes, opts.first)
    data = attrs.evolve(lessons, train=attrs.evolve(lessons.train, first=0))
    path = Path(opts.keep, f"rows-{seed}.json")
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    methods = ["base", *(m for m in opts.methods.split(",") if m), *["windows alone"] * opts.alone]
    todo = [m for m in methods if m not in found]
    base = trained("hybrid", seed, HYBRID, opts, lessons) if {*todo} - {"windows alone"} else None
    for method in todo:
        seconds = recalled = None
        if base is None or method == "windows alone":
            model = trained("windows", seed, ("sliding_window", "sliding_window"), opts, lessons).model
        else:
            again = copy.deepcopy(base)
            again.out = None
            model = again.model
            if method != "base":
                seconds, recalled = extended(again, model, data, filler, method, opts, sizes)
        found[method] = judge(model, plain, filler, sizes, recalled) | {"seconds": seconds}
        path.write_text(json.dumps(found))
        print(f"seed {seed}: {method}", found[method]["perplexity"], found[method]["recall"], seconds, flush=True)
    return {m: found[m] for m in methods}


def mean_grid(tables: list[dict[str, Any]]) -> Recall:
    """The mean over seeds."""
    rows = np.mean([t["accuracy"] for t in tables], 0).tolist()
    return Recall.of(tables[0] | {"accuracy": rows, "samples": sum(t["samples"] for t in tables)})


def show(results: list[dict[str, Any]], sizes: Sizes) -> bool:
    """The table over seeds (means), and the bars."""
    names, head = list(results[0]), [f"{a}–{b}" for a, b in sizes.buckets]

    def mean(name: str, what: str, key: str) -> float:
        return statistics.mean(r[name][what][key] for r in results)

    rows = []
    for name in names:
        seconds = [r[name].get("seconds") for r in results]
        cells = [f"{mean(name, 'perplexity', k):.2f}" for k in head]
        cells += [f"{mean(name, 'recall', str(n)):.0%}" for n in sizes.lengths]
        rows.append([name, *cells, statistics.mean(seconds) if None not in seconds else ""])
    title = ["", *(f"ppl {k}" for k in head), *(f"recall {n}" for n in sizes.lengths), "s"]
    print(harness.table(title, rows))
    if "carry" not in names:
        return True
    late = [r["carry"]["perplexity"][head[-1]] / r["base"]["perplexity"][head[0]] for r in results]
    kept = [r["carry"]["recall"][str(4 * sizes.old)] for r in results]
    good = max(late) <= 1.0 and min(kept) >= 0.9
    print(f"carry at {head[-1]} over base at {head[0]}: {', '.join(f'{x:.3f}' for x in late)} (bar: at most 1)")
    print(f"carry's recall at {4 * sizes.old}: {', '.join(f'{x:.0%}' for x in kept)} (bar: at least 90 %)")
    return good


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--from-seed", type=int, default=0)
    args.add_argument("--steps", type=int, default=900)
    args.add_argument("--first", type=int, default=170, help="steps on short blocks full of questions")
    args.add_argument("--extend", type=int, default=450, help="steps of every method")
    args.add_argument("--methods", default=",".join(METHODS))
    args.add_argument("--alone", action=argparse.BooleanOptionalAction, default=True, help="windows alone beside it")
    args.add_argument("--old", type=int, default=512, help="tokens of the training before; to eight times as many")
    args.add_argument("--window", type=int, default=8, help="of the sliding windows, tokens")
    args.add_argument("--dim", type=int, default=64, help="width")
    args.add_argument("--heads", type=int, default=2)
    args.add_argument("--tau", type=float, default=16.0, help="of the gated-linear layer")
    args.add_argument("--reach", type=float, default=8192.0, help="of the gated-linear layer, tokens")
    args.add_argument("--batch", type=int, default=4, help="sequences of a step")
    args.add_argument("--lr", type=float, default=7e-3, help="peak rate of the training before")
    args.add_argument("--extend-lr", type=float, default=2e-3, help="peak rate of every method")
    args.add_argument("--keep", help="folder where an interrupted run goes on")
    args.add_argument("--png", help="draw the heat maps of recall here")
    args.add_argument("--json")
    opts = args.parse_args()
    torch.set_num_threads(1)
    sizes = Sizes(opts.old, opts.window, min(16384, 64 * opts.old))
    with tempfile.TemporaryDirectory() as folder:
        opts.keep = opts.keep or folder
        Path(opts.keep).mkdir(parents=True, exist_ok=True)
        results = [run(seed, opts, sizes) for seed in range(opts.from_seed, opts.from_seed + opts.seeds)]
    good = show(results, sizes)
    if opts.png:
        wanted = [m for m in ("base", "carry", "windows alone") if m in results[0]]
        draw_heat_map(opts.png, {m: mean_grid([r[m]["grid"] for r in results]) for m in wanted})
    harness.emit({"seeds": results, "bars met": good}, opts.json)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
