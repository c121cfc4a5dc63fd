"""Ternary weights: a projection, a decoded token, and what a small language model loses by being trained so.

    FASTSNN_DATA=../shared/data python benchmarks/ternary.py [--pieces product,token,train] [--rounds 9] [--json F]

``product``: one row of counts through 2048 → 4096 weights, 10, 50 and 90 % of the inputs active, copies beyond any
cache; ternary, INT8 and 4 bits (group 32, minimum) with the same spikes. ``floor`` is the time to read the rows that
spiked and the scales, at the bandwidth of the same rounds. ``token``: a token through a decoder of SmolLM2's shape with
random weights, k = 3, head in 8 bits; ``floor`` is the time to read all weights once.
``train``: two byte decoders (d 128, 3 layers, softmax, k = 3) that differ in ``weights`` alone, same batches of
tinyshakespeare, the library's `Trainer` with its defaults, each at the best of ``--rates`` by the held-out tenth; then
the bundles made of them: held-out nats, size of the folder, tokens/s of one stream.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import harness
import torch

from fastsnn_core import Model, build, create, load
from fastsnn_core.spec import converter
from fastsnn_integer import four_bits, ternary
from fastsnn_integer.quantization import Quant, quantise
from fastsnn_kernel_numba import gemv_events
from fastsnn_kernel_numba.integer_linear import input_major

INPUTS, OUTPUTS, GROUP, MEGABYTES = 2048, 4096, 32, 256
SHAPE = {"vocab_size": 49152, "d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_ff": 1536, "tied": True}
SMALL = {"d_model": 128, "n_layers": 3, "n_heads": 4}
BITS = {"ternary": 2, "4 bits": 4, "INT8": 8}


def products(rounds: int) -> list[list[Any]]:
    """Rows of the table of one projection."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, (OUTPUTS, INPUTS), generator=draw)
    scale, one = torch.rand(OUTPUTS, generator=draw) + 0.1, torch.ones(1, 1)
    q, d, m = four_bits.encode_four_bits(codes * scale[:, None], GROUP, True)
    copies = MEGABYTES << 20 >> 23
    two, eight, four = ternary.pack_ternary(codes), codes.to(torch.int8), four_bits.pack_codes(q)
    twos = [two.clone() for _ in range(4 * copies)]
    eights = [input_major(eight.clone()) for _ in range(copies)]
    fours = [(four.clone(), d.clone(), m.clone()) for _ in range(2 * copies)]
    cells = []
    for share in (0.1, 0.5, 0.9):
        sign = 1 - 2 * torch.randint(0, 2, (1, INPUTS), generator=draw)
        counts = (sign * torch.randint(1, 4, (1, INPUTS), generator=draw)).float()
        counts *= torch.rand(1, INPUTS, generator=draw) < share
        wanted = gemv_events.product(counts, eights[0], scale, one)
        assert torch.equal(ternary.PROJECT("cpu", counts, two, scale), wanted), "other bits than INT8's"
        runs = {
            "ternary": lambda c=counts: [ternary.PROJECT("cpu", c, x, scale) for x in twos],
            "INT8": lambda c=counts: [gemv_events.product(c, x, scale, one) for x in eights],
            "4 bits": lambda c=counts: [four_bits.PROJECT("cpu", c, *x, GROUP) for x in fours],
        }
        events = int(torch.count_nonzero(counts))
        sizes = {"ternary": two.shape[1], "INT8": OUTPUTS, "4 bits": four.shape[1]}
        scales = {"ternary": 4 * OUTPUTS, "INT8": 4 * OUTPUTS, "4 bits": 4 * (d.numel() + m.numel())}
        many = {"ternary": len(twos), "INT8": len(eights), "4 bits": len(fours)}
        read, size = harness.reader(MEGABYTES)
        times = harness.interleave(runs | {"read": read}, rounds)
        bandwidth = size / harness.median(times, "read")
        print(f"{bandwidth / 1e9:.3g} GB/s; {harness.disturbance(times)}")
        own = {name: [t / many[name] for t in times[name]] for name in runs}
        for name in runs:
            floor = 1e3 * (events * sizes[name] + scales[name]) / bandwidth
            cells.append(
                [f"{share:.0%} active", name, 1e3 * harness.median(own, name), floor, harness.ratio(own, "INT8", name)]
            )
    return cells


def decoded_token(bits: int, layers: int) -> tuple[harness.Run, float]:
    """A token of a model of SmolLM2's shape with random weights, and the bytes of weights that it must read."""
    torch.manual_seed(0)
    table: dict[str, Any] = {"kind": "decoder", **SHAPE, "n_layers": layers, "attention": [{"kind": "softmax"}]}
    table |= {"neuron": {"kind": "adaptive_threshold", "k": 3}, "weights": "ternary"}
    model: Any = quantise(converter().structure(table, Model).build(), Quant(bits=bits)).eval()
    with torch.inference_mode():
        _, first = model(torch.randint(0, 1000, (1, 32)), return_state=True, last=True)
    stream = [model.fast(first)]
    assert stream[0] is not None, model.fast_step

    def run() -> None:
        if stream[0].stream.position >= 256:
            stream[0] = model.fast(first)
        stream[0].step(5)

    size = sum(t.nbytes for name, t in model.state_dict().items() if name.endswith((".weight", ".scale", ".minimum")))
    return run, float(size)


def tokens(rounds: int, layers: int) -> list[list[Any]]:
    """Rows of the table of one decoded token."""
    made = {name: decoded_token(bits, layers) for name, bits in BITS.items()}
    read, size = harness.reader(MEGABYTES)
    times = harness.interleave({n: run for n, (run, _) in made.items()} | {"read": read}, rounds, calls=4)
    bandwidth = size / harness.median(times, "read")
    print(f"{bandwidth / 1e9:.3g} GB/s; {harness.disturbance(times)}")
    return [
        ["a token", n, 1e3 * harness.median(times, n), 1e3 * made[n][1] / bandwidth, harness.ratio(times, "INT8", n)]
        for n in BITS
    ]


def trained(weights: str, data: Any, opts: argparse.Namespace) -> tuple[Any, float, float]:
    """The model, its held-out nats a byte, and the rate they are of."""
    from fastsnn_train import TrainConfig, Trainer, evaluate

    best: Any = None
    for rate in opts.rates:
        torch.manual_seed(0)
        attention = (create("attention", "softmax"),)
        model = build(create("model", "decoder", **SMALL, attention=attention, weights=weights))
        config = TrainConfig(max_steps=opts.steps, batch_size=opts.batch, lr=rate, seed=0, trackers=())
        Trainer(model, config, quiet=True).fit(data)
        nats = evaluate(model.eval(), data.held_out, max_sequences=200)["nats_per_token"]
        print(f"{weights}, rate {rate:g}: {nats:.4f} nats a byte", flush=True)
        if best is None or nats < best[1]:
            best = model, nats, rate
    return best


def bundles(opts: argparse.Namespace) -> tuple[list[list[Any]], dict[str, float]]:
    """Rows of the table of trained models."""
    from fastsnn_train import evaluate, load_data

    folder = Path(os.environ.get("FASTSNN_DATA", "../shared/data"))
    data = load_data(str(folder / "tinyshakespeare" / "input.txt"), seq_len=128, holdout=0.1)
    cells, runs, nats = [], {}, {}
    exporters = {"INT8": ("w8a", {}), "4 bits": ("w4a", {}), "ternary": ("w1.58a", {"table_bits": 8})}
    with tempfile.TemporaryDirectory() as place:
        for weights in ("float", "ternary"):
            model, nats[weights], _ = trained(weights, data, opts)
            for name, (kind, params) in exporters.items():
                if (name == "ternary") != (weights == "ternary"):
                    continue
                path = Path(create("exporter", kind, **params).export(model, Path(place) / f"{name}.snn"))
                small = load(path).eval()
                size = sum(p.stat().st_size for p in path.rglob("*.safetensors"))
                lost = evaluate(small, data.held_out, max_sequences=200)["nats_per_token"]
                with torch.inference_mode():
                    _, first = small(torch.randint(0, 256, (1, 32)), return_state=True, last=True)
                runs[name] = lambda s=small, f=first, at=[]: one_more(s, f, at)
                cells.append([f"trained {weights}", name, lost, size / 1e3])
        times = harness.interleave(runs, opts.rounds, calls=20)
    print(harness.disturbance(times))
    return [[*row, 1 / harness.median(times, row[1])] for row in cells], nats


def one_more(model: Any, first: Any, at: list[Any]) -> None:
    """A token of a stream kept in `at`, begun anew after 200."""
    if not at or at[0].stream.position >= 232:
        at[:] = [model.fast(first)]
    at[0].step(5)


def main() -> int:
    """Run, print tables and JSON."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--pieces", help="product,token,train")
    args.add_argument("--rounds", type=int, default=9)
    args.add_argument("--layers", type=int, default=30)
    args.add_argument("--steps", type=int, default=600)
    args.add_argument("--batch", type=int, default=16)
    args.add_argument("--rates", type=float, nargs="+", default=[3e-3])
    args.add_argument("--json")
    opts = args.parse_args()
    found: dict[str, Any] = {}
    for piece in harness.pieces_of(opts.pieces, ("product", "token", "train")):
        if piece == "train":
            found[piece], found["nats"] = bundles(opts)
            loss = found["nats"]
            print(f"held out: float {loss['float']:.4f} nats a byte, ternary {loss['ternary']:.4f}")
            print(harness.table(["", "weights", "nats a byte", "kB", "tokens/s"], found[piece]))
            continue
        found[piece] = products(opts.rounds) if piece == "product" else tokens(opts.rounds, opts.layers)
        print(harness.table(["", "weights", "ms", "floor ms", "x INT8"], found[piece]))
    harness.emit(found, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
