"""Sparsity that is trained: what a decoder loses and how many weight bytes stay unread, beside its dense SiLU twin.

    FASTSNN_DATA=../shared/data python benchmarks/trained_sparsity.py --keep DIR [--seeds 0 1 2]
        [--rows dense relu2:k=2:l1=0.3:head=0] [--shape d_model=256 n_layers=6]

Byte decoders (d 128, 4 layers, softmax attention) trained on WikiText-2 valid, all with the same batches of a seed, the
library's `Trainer` and one rate; they differ in what stands here:

    dense     SiLU gate, no spikes
    relu …    that gate (relu, relu2, drelu), spikes at every projection (adaptive_threshold, `k`) and at the head
              (`head=0`: not there), and `l1` on the hidden channels; with `tune` dead zones on top, chosen on the text
              it learnt so that they cost that share of the perplexity (`fastsnn tune --loss`)
    ternary … SiLU gate, weights of the blocks ternary throughout training (straight-through), spikes as above, no `l1`

Nats a byte are those of the first ``--sequences`` of ``--seq-len`` bytes of WikiText-2 test; ``x dense`` is the ratio
of the two perplexities of a seed. `bundle` is that of the w8a bundle made of the model (w1.58a of a ternary one: 2
bits, embedding and head 8), which is kept in DIR with a row of JSON each (rows that are there are not trained again).
``unread`` is the share of that bundle's weight bytes that a token does not read, all projections and the head: a silent
input's row, and with gate first the rows of `up` behind shut gates, where those are fewer. ``hidden`` is the share of
silent hidden channels. For `frontier.py` DIR also gets the dense model as a Hugging Face directory and as a GGUF (for
llama.cpp's formats widths have to be multiples of 32):

    python benchmarks/frontier.py DIR/dense-0 DIR/dense-0.gguf --ours relu2=DIR/relu2:...-0.w8a.snn --windows 32
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import gguf_of_llama
import harness
import torch
from weights_read import weights_read

from fastsnn_core import build, create, load
from fastsnn_text import attach, load_tokenizer
from fastsnn_train import TrainConfig, Trainer, evaluate, load_data
from fastsnn_tune import tune_to_loss

SHAPE = {"d_model": 128, "n_layers": 4, "n_heads": 4}
DEFAULTS = {"k": 1.0, "l1": 1.0, "silent": 0.97, "head": 1.0, "warm": 0.0, "tune": 0.0}
SITES = ("attn_in", "attn_out", "ffn_in", "ffn_hidden", "head")


def settings(row: str) -> tuple[str, dict[str, float]]:
    """``(gate, numbers)`` of a row such as relu2:k=2:l1=0.3."""
    gate, *pairs = row.split(":")
    found = dict(DEFAULTS)
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in DEFAULTS:
            raise SystemExit(f"--rows: {row!r} sets {name!r}; there are {', '.join(DEFAULTS)}")
        found[name] = float(value)
    return gate, found


def decoder(row: str, shape: dict[str, int]) -> Any:
    """A model of the row."""
    table: dict[str, Any] = {"attention": (create("attention", "softmax"),), "sites": ()}
    gate, numbers = settings(row)
    if gate == "ternary":
        table["weights"] = "ternary"
    if gate != "dense":
        table["neuron"] = create("neuron", "adaptive_threshold", k=numbers["k"])
        table["sites"] = SITES if numbers["head"] else SITES[:-1]
        table["feedforward"] = create("feedforward", "pulse", activation="silu" if gate == "ternary" else gate)
    return build(create("model", "decoder", **SHAPE | shape, **table))


def trained(row: str, seed: int, data: Any, opts: argparse.Namespace) -> Any:
    """The row's model, trained."""
    torch.manual_seed(seed)
    model = decoder(row, dict(opts.shape))
    gate, numbers = settings(row)
    sparse: dict[str, Any] = {}
    if gate == "ternary":
        sparse = {"spike_warmup": numbers["warm"]}
    elif gate != "dense":
        sparse = {"l1": numbers["l1"], "l1_silent": numbers["silent"], "spike_warmup": numbers["warm"]}
    config = TrainConfig(
        max_steps=opts.steps, batch_size=opts.batch, lr=opts.lr, seed=seed, trackers=(), eval_sequences=1, **sparse
    )
    Trainer(model, config, quiet=True).fit(data)
    return model.eval()


def reads(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """Shares of the weight bytes that a token does not read, by layer, and of all."""
    rows = weights_read(model, tokens)
    sizes = {name: row.layer.weight.numel() for name, row in rows.items()}
    whole = sum(sizes.values())
    hidden = [row.active for name, row in rows.items() if name.endswith(".down")]
    inputs = [row.active for name, row in rows.items() if name.endswith((".q", ".gate"))]
    return {
        "unread by events": 1 - sum(sizes[n] * row.active for n, row in rows.items()) / whole,
        "unread": 1 - sum(sizes[n] * row.read for n, row in rows.items()) / whole,
        "hidden": 1 - statistics.mean(hidden),
        "inputs": 1 - statistics.mean(inputs),
        "head": 1 - rows["head"].active,
        "head bytes": sizes["head"] / whole,
    }


def measured(row: str, seed: int, opts: argparse.Namespace) -> dict[str, Any]:
    """A row of the table: trained, exported and measured, or what an earlier run has kept."""
    kept = opts.keep / f"{row}-{seed}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    text = opts.data / "wikitext2"
    data = load_data(str(text / "valid.txt"), seq_len=opts.seq_len, holdout=0.02)
    test = load_data(str(text / "test.txt"), seq_len=opts.seq_len, holdout=0.0).train
    begun, base = time.process_time(), ":".join(part for part in row.split(":") if not part.startswith("tune="))
    weights = opts.keep / f"{base}-{seed}.pt"
    if weights.is_file():
        model = decoder(row, dict(opts.shape)).eval()
        model.load_state_dict(torch.load(weights))
    else:
        model = trained(row, seed, data, opts)
        torch.save(model.state_dict(), weights)
    found = {"row": row, "seed": seed, "train s": time.process_time() - begun}
    if loss := settings(row)[1]["tune"]:
        attach(model, load_tokenizer("byte"))
        learnt = (text / "valid.txt").read_text(encoding="utf-8")
        model = tune_to_loss(model, learnt, losses=(loss,), seq_len=opts.seq_len, windows=16, quiet=True).model
    found["nats"] = evaluate(model, test, max_sequences=opts.sequences)["nats_per_token"]
    tokens = torch.stack([test.block(i)[:-1] for i in range(8)])
    if row == "dense":
        found["unread"] = 0.0
        folder = create("exporter", "llama").export(model, opts.keep / f"{row}-{seed}")
        gguf_of_llama.write(folder, folder.with_suffix(".gguf"))
    else:
        kind, bits = ("w1.58a", "ternary") if settings(row)[0] == "ternary" else ("w8a", "INT8")
        name = f"{row}-{seed}.{kind.replace('.', '_')}.snn"
        small: Any = load(create("exporter", kind).export(model, opts.keep / name)).eval()
        found[f"{bits} nats"] = evaluate(small, test, max_sequences=opts.sequences)["nats_per_token"]
        found |= reads(small, tokens)
    kept.write_text(json.dumps(found), encoding="utf-8")
    print(json.dumps(found), flush=True)
    return found


def pair(text: str) -> tuple[str, int]:
    """``NAME=N``."""
    name, _, value = text.partition("=")
    return name, int(value)


def main() -> int:
    """Run, print a table and JSON."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--keep", type=Path, required=True)
    args.add_argument("--rows", nargs="+", default=["dense", "relu"])
    args.add_argument("--shape", nargs="*", type=pair, default=[], metavar="OPTION=N")
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("--steps", type=int, default=300)
    args.add_argument("--batch", type=int, default=16)
    args.add_argument("--seq-len", type=int, default=128)
    args.add_argument("--lr", type=float, default=5e-3)
    args.add_argument("--sequences", type=int, default=400)
    args.add_argument("--data", type=Path, default=Path(os.environ.get("FASTSNN_DATA", "../shared/data")))
    args.add_argument("--json")
    opts = args.parse_args()
    opts.keep.mkdir(parents=True, exist_ok=True)
    rows = [measured(row, seed, opts) for seed in opts.seeds for row in opts.rows]
    dense = {r["seed"]: r["nats"] for r in rows if r["row"] == "dense"}
    cells = []
    for r in rows:
        twin = dense.get(r["seed"])
        over = {key: math.exp(r[key] - twin) for key in ("nats", "INT8 nats", "ternary nats") if twin and key in r}
        r["x dense"], r["bundle x dense"] = over.get("nats"), over.get("INT8 nats", over.get("ternary nats"))
        keys = (
            "row",
            "seed",
            "nats",
            "x dense",
            "bundle x dense",
            "hidden",
            "inputs",
            "head",
            "unread by events",
            "unread",
        )
        cells.append([r.get(key) for key in keys])
    head = ["", "seed", "nats", "x dense", "bundle", "hidden", "inputs", "head", "unread by events", "unread"]
    print(harness.table(head, cells))
    harness.emit({"rows": rows, "load": os.getloadavg()}, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
