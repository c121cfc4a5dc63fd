"""From 512 to 4096 tokens: what each way of extending a context keeps of perplexity and of recall.

    python benchmarks/extend.py [--seeds 3] [--steps 2000] [--extend 150] [--methods carry,long,…] [--json out.json]

(`--old 64 --window 8 --batch 16 --steps 1000` is the same eight times smaller: half a minute a seed.) A small spiking
decoder (window of 64, then a gated-linear layer, adaptive thresholds) is trained at 512 tokens on
Shakespeare in lower case, with a fact (#K7) stored in the first half of every block and asked for (?K) all along behind
it. Then each method goes on from the same weights and moments, for as many steps. Perplexity is of the same held-out
text at every place; recall is `fastsnn_train.recall`'s mqar (one pair) in held-out text; chance is 10 %. Beside it a
model with windows alone, trained the same way: its two layers reach 126 tokens back. Bars: carry's perplexity at 2k–4k
no worse than the un-extended model's at 256–512; its recall at 2048 tokens at least 90 %.
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
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import harness
import numpy as np
import torch

from fastsnn_core import build, create
from fastsnn_text import ByteTokenizer, attach
from fastsnn_train import Data, TrainConfig, Trainer, extend_context
from fastsnn_train.extend_shape import adopt
from fastsnn_train.packing import Packed
from fastsnn_train.recall import mqar, recall

PAIRS, DENSITY = 1, 16  # pairs of a block; tokens per question
HYBRID = ("sliding_window", "gla")  # the window binds a value to its key, the linear layer keeps it
METHODS = ("carry", "short", "rope", "pass", "long", "decay")


@attrs.frozen
class Sizes:
    """From `old` to eight times as many tokens, with windows of `window`; perplexity is of the same `text` tokens."""

    old: int = 512
    window: int = 64
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


@attrs.frozen(eq=False)
class Blocks(Packed):
    """Text in blocks of `seq_len` with pairs stored in the first half of each, and asked for all along behind them."""

    def batch(self, step: int, size: int, seed: int) -> torch.Tensor:
        return torch.stack([self.make(np.random.default_rng([seed, step, i])) for i in range(size)])

    def block(self, i: int) -> torch.Tensor:
        return self.make(np.random.default_rng([7, i]))

    def make(self, rng: np.random.Generator) -> torch.Tensor:
        start = int(rng.integers(len(self.tokens) - self.seq_len - 1))
        ids = self.tokens[start : start + self.seq_len + 1].astype(np.int64)
        asked = mqar(rng, ByteTokenizer().encode, PAIRS)
        place = int(rng.integers(1, self.seq_len // 2))
        ids[place : place + len(asked.fact)] = asked.fact
        size, room = len(asked.end), self.seq_len - place - len(asked.fact)
        questions = self.seq_len // DENSITY
        places = place + len(asked.fact) + np.sort(rng.integers(0, max(1, room - size), questions))
        pairs = [asked.end[i : i + 3] for i in range(0, size, 3)]
        for at in places:
            ids[at : at + size] = np.concatenate([pairs[i] for i in rng.permutation(len(pairs))])
        return torch.from_numpy(ids)


def corpus(sizes: Sizes) -> tuple[Data, torch.Tensor, str]:
    """Training blocks, plain held-out text for perplexity, and text around the facts of the recall test."""
    root = Path(os.environ.get("FASTSNN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    files = sorted((root / "tinyshakespeare").glob("*.txt"))
    assert files, f"no tinyshakespeare under {root}; set FASTSNN_DATA"
    text = max((f.read_text() for f in files), key=len).lower().replace("#", "").replace("?", "")
    bytes_ = np.frombuffer(text.encode("ascii", "ignore"), np.uint8)
    cut = int(0.9 * len(bytes_))
    train, held = Blocks(bytes_[:cut], sizes.old), Blocks(bytes_[cut:], sizes.old)
    return (
        Data(train, held, ByteTokenizer()),
        torch.from_numpy(bytes_[cut:].astype(np.int64)),
        bytes_[cut:].tobytes().decode(),
    )


def make(seed: int, kinds: tuple[str, ...], window: int) -> torch.nn.Module:
    """A decoder of two layers."""
    torch.manual_seed(seed)
    rows = tuple(create("attention", k, **({"window": window} if k == "sliding_window" else {})) for k in kinds)
    model = build(create("model", "decoder", d_model=32, n_layers=2, n_heads=2, attention=rows))
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


def judge(model: torch.nn.Module, plain: torch.Tensor, filler: str, sizes: Sizes) -> dict[str, Any]:
    """Perplexity by bucket, recall by length."""
    found = recall(model, partial(mqar, pairs=PAIRS), lengths=sizes.lengths, samples=16, filler=filler)
    return {
        "perplexity": {f"{a}–{b}": perplexity(model, plain, a, b, sizes) for a, b in sizes.buckets},
        "recall": {str(n): found.at(n) for n in sizes.lengths},
        "grid": found.accuracy,
    }


def extended(trainer: Trainer, model: Any, data: Data, method: str, steps: int, new: int) -> float:
    """Go on from a trained model in one way; seconds."""
    began, quiet = time.perf_counter(), {"quiet": True, "recall": (), "eval_sequences": 1, "data": data}
    if method == "rope":
        adopt(model, attrs.evolve(model.spec, rope=attrs.evolve(model.spec.rope, theta=model.spec.rope.theta * 8)))
    elif method == "short":
        config = attrs.evolve(trainer.config, max_steps=trainer.step + steps, lr=trainer.config.lr / 10, warmup=0.0)
        more = Trainer(model, config, quiet=True)
        more.stepper.optimizer.load_state_dict(trainer.optimizer.state_dict())
        more.step = trainer.step
        for step in range(steps):
            more.train_step(data.train.batch(step, config.batch_size, 1))
        model.eval()
    else:
        extend_context(model, trainer, new_seq_len=new, max_steps=steps, mode=method, **quiet)
    return time.perf_counter() - began


def trained(name: str, seed: int, kinds: tuple[str, ...], opts: argparse.Namespace, data: Data) -> Trainer:
    """A model trained at the old length; one that was interrupted goes on."""
    config = TrainConfig(
        max_steps=opts.steps,
        batch_size=opts.batch,
        lr=opts.lr,
        seed=seed,
        warmup=0.1,
        log_every=100,
        checkpoint_every=100,
    )
    return Trainer(make(seed, kinds, opts.window), config, out=Path(opts.keep, f"{name}-{seed}"), quiet=True).fit(
        data, resume=True
    )


def run(seed: int, opts: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """One seed: train, then every method from the same point. Rows that are kept already are not done again."""
    data, plain, filler = corpus(sizes)
    path = Path(opts.keep, f"rows-{seed}.json")
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    methods = ["base", *(m for m in opts.methods.split(",") if m), *["windows alone"] * opts.alone]
    todo = [m for m in methods if m not in found]
    base = trained("hybrid", seed, HYBRID, opts, data) if {*todo} - {"windows alone"} else None
    for method in todo:
        seconds = None
        if base is None or method == "windows alone":
            model = trained("windows", seed, ("sliding_window", "sliding_window"), opts, data).model
        else:
            again = copy.deepcopy(base)
            again.out = None
            model = again.model
            seconds = extended(again, model, data, method, opts.extend, sizes.new) if method != "base" else None
        found[method] = judge(model, plain, filler, sizes) | {"seconds": seconds}
        path.write_text(json.dumps(found))
        print(f"seed {seed}: {method}", found[method]["perplexity"], found[method]["recall"], seconds, flush=True)
    return {m: found[m] for m in methods}


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
    args.add_argument("--first", type=int, default=0, help="the first seed")
    args.add_argument("--steps", type=int, default=2000)
    args.add_argument("--extend", type=int, default=150, help="steps of every method")
    args.add_argument("--methods", default=",".join(METHODS))
    args.add_argument("--alone", action=argparse.BooleanOptionalAction, default=True, help="windows alone beside it")
    args.add_argument("--old", type=int, default=512, help="tokens of the training before; to eight times as many")
    args.add_argument("--window", type=int, default=64, help="of the sliding windows, tokens")
    args.add_argument("--batch", type=int, default=4, help="sequences of a step")
    args.add_argument("--lr", type=float, default=6e-3, help="peak rate of the training before")
    args.add_argument("--keep", help="folder where an interrupted run goes on")
    args.add_argument("--json")
    opts = args.parse_args()
    torch.set_num_threads(1)
    sizes = Sizes(opts.old, opts.window, min(16384, 64 * opts.old))
    with tempfile.TemporaryDirectory() as folder:
        opts.keep = opts.keep or folder
        Path(opts.keep).mkdir(parents=True, exist_ok=True)
        results = [run(seed, opts, sizes) for seed in range(opts.first, opts.first + opts.seeds)]
    good = show(results, sizes)
    harness.emit({"seeds": results, "bars met": good}, opts.json)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
