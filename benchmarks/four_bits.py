"""4-bit weights: a projection and a whole token, beside INT8 with the same spikes and torch float32.

    python benchmarks/four_bits.py [--rounds 9] [--layers 30] [--json F]

A projection of 576 → 1536 (SmolLM2's gate), counts of about 10 % silent inputs, groups of 32 with a minimum; 1, 16 and
512 rows, and copies of it beyond any cache, so that weights come from memory. Then a token through a decoder of
SmolLM2's shape with random weights, ours in 4 and in 8 bits; ``--layers 0`` leaves it out. ``floor`` is the time to
read what a row must (codes or INT8 rows that spiked, scales) at the bandwidth of the same rounds; one row is bound by
it, many rows are bound by arithmetic and say products per second.
"""

from __future__ import annotations

import argparse
from typing import Any

import harness
import torch
from torch.nn import functional as F

from fastsnn_core import Model, SpikeTensor
from fastsnn_core.spec import converter
from fastsnn_integer.four_bits import PROJECT, encode_four_bits, pack_codes
from fastsnn_integer.quantization import Quant, quantise, quantized_linear
from fastsnn_kernel_numba.integer_linear import input_major

INPUTS, OUTPUTS, GROUP, COPIES, MEGABYTES = 576, 1536, 32, 96, 256
SHAPE = {"vocab_size": 49152, "d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_ff": 1536, "tied": True}


def projections(rows: int) -> tuple[dict[str, harness.Run], dict[str, float]]:
    """Runs over all copies of the projection, and the bytes that each must read."""
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(-7, 8, (rows, INPUTS), generator=draw).float()
    counts *= torch.rand(rows, INPUTS, generator=draw) < 0.96
    weight = torch.randn(OUTPUTS, INPUTS, generator=draw) * 0.1
    codes, d, m = encode_four_bits(weight, GROUP, True)
    packed = pack_codes(codes)
    scale = weight.abs().amax(1) / 127
    eight = (weight / scale[:, None]).round().to(torch.int8)
    copies = COPIES if rows == 1 else 1
    four_bits = [(packed.clone(), d.clone(), m.clone()) for _ in range(copies)]
    int8 = [input_major(eight.clone()) for _ in range(copies)]
    floats = [weight.clone() for _ in range(copies)]
    spikes = SpikeTensor(counts, torch.ones(rows, 1))

    def run_four_bits() -> None:
        for each in four_bits:
            PROJECT("cpu", counts, *each, GROUP)

    def run_int8() -> None:
        for each in int8:
            quantized_linear(spikes, each, scale[:, None], 0)

    def run_float() -> None:
        for each in floats:
            F.linear(counts, each)

    active = float((counts != 0).float().mean()) if rows == 1 else 1.0
    read = {
        "4 bits": active * packed.numel() + 4 * (d.numel() + m.numel()),
        "INT8": active * eight.numel() + 4 * OUTPUTS,
        "float32": 4 * weight.numel(),
    }
    found = {"4 bits": run_four_bits, "INT8": run_int8, "float32": run_float}
    return found, {name: copies * size for name, size in read.items()}


def token(bits: int, layers: int) -> harness.Run:
    """A decoded token of a model of SmolLM2's shape; the head has 8 bits."""
    torch.manual_seed(0)
    table: dict[str, Any] = {"kind": "decoder", **SHAPE, "n_layers": layers, "attention": [{"kind": "softmax"}]}
    table["neuron"] = {"kind": "adaptive_threshold", "k": 3}
    model: Any = quantise(converter().structure(table, Model).build(), Quant(bits=bits)).eval()
    with torch.inference_mode():
        _, first = model(torch.randint(0, 1000, (1, 32)), return_state=True, last=True)
    stream = [model.fast(first)]

    def run() -> None:
        if stream[0].stream.position >= 256:
            stream[0] = model.fast(first)
        stream[0].step(5)

    return run


def main() -> int:
    """Run, print a table and JSON."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--rounds", type=int, default=9)
    args.add_argument("--layers", type=int, default=30)
    args.add_argument("--json")
    opts = args.parse_args()
    cells, found = [], []
    for rows in (1, 16, 512):
        runs, sizes = projections(rows)
        read, size = harness.reader(MEGABYTES)
        times = harness.interleave(runs | {"read": read}, opts.rounds)
        bandwidth = size / harness.median(times, "read")
        for name in runs:
            seconds, copies = harness.median(times, name), COPIES if rows == 1 else 1
            row = {
                "rows": rows, "weights": name, "ms": 1e3 * seconds / copies,
                "floor_ms": 1e3 * sizes[name] / bandwidth / copies,
                "products_g_s": copies * rows * INPUTS * OUTPUTS / seconds / 1e9,
                "over_int8": harness.ratio(times, "INT8", name), "over_float32": harness.ratio(times, "float32", name),
            }  # fmt: skip
            found.append(row)
            cells.append(list(row.values()))
        print(harness.disturbance(times))
    if opts.layers:
        runs = {f"{bits} bits": token(bits, opts.layers) for bits in (4, 8)}
        times = harness.interleave(runs, opts.rounds, calls=8)
        for name in runs:
            ratio = harness.ratio(times, "8 bits", name)
            row = {"rows": "a token", "weights": name, "ms": 1e3 * harness.median(times, name), "over_int8": ratio}
            found.append(row)
            cells.append([row["rows"], name, row["ms"], None, None, ratio, None])
        print(harness.disturbance(times))
    print(harness.table(["rows", "weights", "ms", "floor ms", "G products/s", "x INT8", "x float32"], cells))
    harness.emit({"rows": found}, opts.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
