"""Spikes through an 11008 → 4096 layer with INT8 weights: event-driven, dense, and torch's F.linear.

    python benchmarks/event_linear.py [--rounds 3] [--many] [--json out.json]

One row is what a decoded token puts in front of one projection, at several fractions of silent inputs. Every call gets
a spike pattern of its own, 84 calls in a row as one token of a twelve-layer decoder makes them (the first is slow, with
whatever came before in the caches, and counts), and weights come from three matrices in turn (135 MB in INT8, 540 MB in
float32), so that no cache can help. Counts are 1 + Poisson(1.2), of either sign; results are checked first. The floor
of the event-driven row is the weight rows that spiked, active · 4096 bytes, over the read bandwidth of the same rounds:
what torch's 64-bit sum reaches on the very same matrices, on as many threads. *dense* reads all INT8 weights, stored
output-major. What a call costs beside its memory is the time of a row without a single spike. The break-even is the
density at which the event-driven row would take as long. ``--many`` times exact integer products of many rows beside
their floating-point candidates.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import harness
import torch
from torch import Tensor
from torch.nn import functional as F

import fastsnn_events
from fastsnn_core import SpikeTensor

WIDE, TALL, MATRICES, CALLS = 11008, 4096, 3, 84
SILENT = (0.0, 0.5, 0.7, 0.9, 0.95)
RIVALS = ("float32", "bfloat16", "dense")
HEAD = ["silent", "ms", "floor ms", "of bandwidth", "x float32", "x bfloat16", "x int8 dense"]


def patterns(silent: float, number: int, rows: int = 1) -> list[Tensor]:
    """Counts ``[rows, WIDE]`` in int32."""
    counts = 1 + torch.poisson(torch.full((number, rows, WIDE), 1.2))
    counts *= torch.randint(0, 2, counts.shape) * 2 - 1
    return list((counts * (torch.rand(counts.shape) >= silent)).to(torch.int32))


def over(call: Callable[..., Any], inputs: list[Any], weights: list[Tensor], turn: Iterator[int]) -> harness.Run:
    """`call` on the next input and the next weights, in turn."""

    def run() -> None:
        i = next(turn)
        call(inputs[i % len(inputs)], weights[i % len(weights)])

    return run


def reader(weights: list[Tensor]) -> tuple[harness.Run, int]:
    """One pass over all input-major weights, and their bytes."""
    words = [w.T.view(torch.int64) for w in weights]
    return lambda: [w.sum() for w in words], sum(w.nbytes for w in words)


def one_row(rounds: int) -> dict[str, Any]:
    by_output = [torch.randint(-127, 128, (TALL, WIDE), dtype=torch.int8) for _ in range(MATRICES)]
    by_input = [fastsnn_events.input_major(w) for w in by_output]
    floats, halves = [w.float() for w in by_output], [w.bfloat16() for w in by_output]
    read, size = reader(by_input)
    nothing = [SpikeTensor(torch.zeros(1, WIDE, dtype=torch.int32))]
    result: dict[str, Any] = {}
    for silent in SILENT:
        pool, turn = patterns(silent, 64), itertools.count()
        spikes = [SpikeTensor(p) for p in pool]
        for p, s, w in zip(pool, spikes, by_input[:2], strict=False):
            assert torch.equal(fastsnn_events.count_linear(s, w), p.to(torch.int64) @ w.to(torch.int64).T)
        rows: dict[str, harness.Run | None] = {
            "read": read,
            "event": over(fastsnn_events.count_linear, spikes, by_input, turn),
            "call": over(fastsnn_events.count_linear, nothing, by_input, turn),
            "dense": over(fastsnn_events.count_linear, spikes, by_output, turn),
            "float32": over(F.linear, [p.float() for p in pool], floats, turn),
            "bfloat16": over(F.linear, [p.bfloat16() for p in pool], halves, turn),
        }
        times = harness.interleave(rows, rounds, CALLS)
        touched = sum(int((p != 0).sum()) for p in pool) / len(pool) * TALL
        bandwidth = size / harness.median(times, "read")
        found = {f"{name}_ms": harness.median(times, name) * 1e3 for name in rows if name != "read"}
        found |= {f"{name}_over_event": harness.ratio(times, name, "event") for name in RIVALS}
        found |= {"floor_ms": touched / bandwidth * 1e3, "read_gb_s": bandwidth / 1e9}
        found |= {"of_bandwidth": touched / size * harness.ratio(times, "read", "event")}
        found |= {"disturbed_rounds": times["disturbed rounds"][0]}
        result[f"{silent:.2f}"] = found
    return result | {"break_even_density": break_even(result)}


def break_even(result: dict[str, Any]) -> float:
    """Density of active inputs at which the event-driven row takes as long as the dense one; 1 where it never does."""
    points = sorted((1 - float(silent), row["event_ms"] / row["dense_ms"]) for silent, row in result.items())
    for (d0, r0), (d1, r1) in itertools.pairwise(points):
        if r0 < 1 <= r1:
            return d0 + (1 - r0) / (r1 - r0) * (d1 - d0)
    return 1.0 if points[-1][1] < 1 else 0.0


def many_rows(rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    weight = torch.randint(-127, 128, (TALL, WIDE), dtype=torch.int8)
    by_input, single, half = fastsnn_events.input_major(weight), weight.float(), weight.bfloat16()
    for rows in (4, 16, 64, 256):
        small = patterns(0.3, 1, rows)[0]
        burst = small.clone()
        burst[0, ::500] *= 1000
        few, bursts = SpikeTensor(small), SpikeTensor(burst)
        found: dict[str, Any] = {}
        runs: dict[str, harness.Run | None] = {
            "ours": partial(fastsnn_events.count_linear, few, weight),
            "ours, input-major": partial(fastsnn_events.count_linear, few, by_input),
            "ours, bursts of 1000": partial(fastsnn_events.count_linear, bursts, weight),
            "float32": partial(F.linear, small.float(), single),
            "bfloat16 (rounds)": partial(F.linear, small.bfloat16(), half),
        }
        times = harness.interleave(runs, rounds)
        for name in runs:
            found[name] = {"ms": harness.median(times, name) * 1e3, "over_ours": harness.ratio(times, name, "ours")}
        result[str(rows)] = found
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.many:
        result = many_rows(args.rounds)
        names = list(result["16"])
        print(harness.table(["rows, ms", *names], [[n] + [row[k]["ms"] for k in names] for n, row in result.items()]))
    else:
        result = one_row(args.rounds)
        lines = [
            [f"{float(silent):.0%}", row["event_ms"], row["floor_ms"], f"{row['of_bandwidth']:.0%}"]
            + [row[f"{name}_over_event"] for name in RIVALS]
            for silent, row in result.items()
            if silent != "break_even_density"
        ]
        print(harness.table(HEAD, lines))
        first = result[f"{SILENT[0]:.2f}"]
        print(f"reads {first['read_gb_s']:.1f} GB/s; dense INT8 takes {first['dense_ms']:.2f} ms; ", end="")
        print(f"break-even at {result['break_even_density']:.0%} active inputs; ", end="")
        print(f"a call without a spike takes {first['call_ms'] * 1e3:.1f} us")
    harness.emit(result, args.json)


if __name__ == "__main__":
    main()
