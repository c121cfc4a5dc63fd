"""Sparsity that is trained: what a decoder loses and how many weight bytes stay unread, beside its dense SiLU twin.

    FASTSNN_DATA=../shared/data python benchmarks/trained_sparsity.py --keep DIR [--seeds 0 1 2] [--rows relu,dense]

Byte decoders (d 128, 4 layers, softmax attention) trained on WikiText-2 valid, all with the same batches of a seed, the
library's `Trainer` and one rate; they differ in what stands here:

    dense     SiLU gate, no spikes
    relu …    that gate (relu, relu2, drelu), spikes at every projection and at the head (adaptive_threshold, `--k`),
              and l1 on the hidden channels

Nats a byte are those of the first ``--sequences`` of 128 bytes of WikiText-2 test; ``x dense`` is the ratio of the two
perplexities of a seed. `INT8` is the w8a bundle made of the model, which is kept in DIR with a row of JSON each (rows
that are there are not trained again). ``unread`` is the share of that bundle's weight bytes that a token does not read,
all projections and the head: a silent input's row, and with gate first the rows of `up` behind shut gates, where those
are fewer. ``hidden`` is the share of silent hidden channels.
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

import harness
import torch

from fastsnn_core import build, create, load
from fastsnn_train import TrainConfig, Trainer, evaluate, load_data

SHAPE = {"d_model": 128, "n_layers": 4, "n_heads": 4}
SITES = ("attn_in", "attn_out", "ffn_in", "ffn_hidden", "head")


def decoder(row: str, opts: argparse.Namespace) -> Any:
    """A model of the row."""
    table: dict[str, Any] = {"attention": (create("attention", "softmax"),), "sites": ()}
    if row != "dense":
        table["neuron"] = create("neuron", "adaptive_threshold", k=opts.k)
        table |= {"sites": SITES, "feedforward": create("feedforward", "pulse", activation=row)}
    return build(create("model", "decoder", **SHAPE, **table))


def trained(row: str, seed: int, data: Any, opts: argparse.Namespace) -> Any:
    """The row's model, trained."""
    torch.manual_seed(seed)
    model = decoder(row, opts)
    sparse = {} if row == "dense" else {"l1": opts.l1, "l1_silent": opts.l1_silent}
    config = TrainConfig(
        max_steps=opts.steps, batch_size=opts.batch, lr=opts.lr, seed=seed, trackers=(), eval_sequences=1, **sparse
    )
    Trainer(model, config, quiet=True).fit(data)
    return model.eval()


@torch.inference_mode()
def reads(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """Shares of the weight bytes that a token reads, by layer, and of all."""
    active: dict[str, float] = {}
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "weight") and hasattr(m, "in_features")}
    handles = []
    for name, layer in layers.items():

        def hook(_: Any, args: tuple[Any, ...], name: str = name) -> None:
            found = getattr(args[0], "counts", args[0])
            active[name] = float((found != 0).float().mean())

        handles.append(layer.register_forward_pre_hook(hook))
    model(tokens)
    for handle in handles:
        handle.remove()
    if model.head is None:  # tied: the embedding is the head, and its site says what it reads
        layers["head"] = model.embed
        spikes = model(tokens, head=False)
        active["head"] = float((getattr(spikes, "counts", spikes) != 0).float().mean())
    events = dict(active)
    for name in active:
        if name.endswith(".up") and name.replace(".up", ".gate") in active:
            events[name] = min(active[name], active[name.replace(".up", ".down")])
    sizes = {name: layers[name].weight.numel() for name in active}
    whole = sum(sizes.values())
    hidden = [share for name, share in active.items() if name.endswith(".down")]
    inputs = [share for name, share in active.items() if name.endswith((".q", ".gate"))]
    return {
        "unread by events": 1 - sum(sizes[n] * active[n] for n in sizes) / whole,
        "unread": 1 - sum(sizes[n] * events[n] for n in sizes) / whole,
        "hidden": 1 - statistics.mean(hidden),
        "inputs": 1 - statistics.mean(inputs),
        "head": 1 - active["head"],
        "head bytes": sizes["head"] / whole,
    }


def measured(row: str, seed: int, opts: argparse.Namespace) -> dict[str, Any]:
    """A row of the table: trained, exported and measured, or what an earlier run has kept."""
    kept = opts.keep / f"{row}-{seed}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    text = opts.data / "wikitext2"
    data = load_data(str(text / "valid.txt"), seq_len=128, holdout=0.02)
    test = load_data(str(text / "test.txt"), seq_len=128, holdout=0.0).train
    begun = time.process_time()
    model = trained(row, seed, data, opts)
    found = {"row": row, "seed": seed, "train s": time.process_time() - begun}
    found["nats"] = evaluate(model, test, max_sequences=opts.sequences)["nats_per_token"]
    torch.save(model.state_dict(), opts.keep / f"{row}-{seed}.pt")
    tokens = torch.stack([test.block(i)[:-1] for i in range(8)])
    if row == "dense":
        found["unread"] = 0.0
    else:
        path = create("exporter", "w8a").export(model, opts.keep / f"{row}-{seed}.w8a.snn")
        small: Any = load(path).eval()
        found["INT8 nats"] = evaluate(small, test, max_sequences=opts.sequences)["nats_per_token"]
        found |= reads(small, tokens)
    kept.write_text(json.dumps(found), encoding="utf-8")
    print(json.dumps(found), flush=True)
    return found


def main() -> int:
    """Run, print a table and JSON."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--keep", type=Path, required=True)
    args.add_argument("--rows", default="relu,dense")
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("--steps", type=int, default=300)
    args.add_argument("--batch", type=int, default=16)
    args.add_argument("--lr", type=float, default=5e-3)
    args.add_argument("--k", type=float, default=1.0)
    args.add_argument("--l1", type=float, default=1.0)
    args.add_argument("--l1-silent", type=float, default=0.97)
    args.add_argument("--sequences", type=int, default=400)
    args.add_argument("--data", type=Path, default=Path(os.environ.get("FASTSNN_DATA", "../shared/data")))
    args.add_argument("--json")
    opts = args.parse_args()
    opts.keep.mkdir(parents=True, exist_ok=True)
    rows = [measured(row, seed, opts) for seed in opts.seeds for row in opts.rows.split(",")]
    dense = {r["seed"]: r["nats"] for r in rows if r["row"] == "dense"}
    cells = []
    for r in rows:
        twin = dense.get(r["seed"])
        over = {key: math.exp(r[key] - twin) for key in ("nats", "INT8 nats") if twin and key in r}
        r["x dense"], r["INT8 x dense"] = over.get("nats"), over.get("INT8 nats")
        keys = (
            "row",
            "seed",
            "nats",
            "x dense",
            "INT8 x dense",
            "hidden",
            "inputs",
            "head",
            "unread by events",
            "unread",
        )
        cells.append([r.get(key) for key in keys])
    head = ["", "seed", "nats", "x dense", "INT8", "hidden", "inputs", "head", "unread by events", "unread"]
    print(harness.table(head, cells))
    harness.emit({"rows": rows, "load": os.getloadavg()}, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
