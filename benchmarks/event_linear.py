"""One row of spikes through an 11008 → 4096 layer with INT8 weights: event-driven, dense, and torch's F.linear.

    python benchmarks/event_linear.py [--rounds 15] [--json out.json]

What a decoded token does in front of one projection, at several fractions of silent inputs. Every call gets a spike
pattern it has not seen, and weights come from three matrices in turn (135 MB in INT8, 540 MB in float32), so that no
cache can help. The floor of the event-driven row is the weight rows that spiked, active · 4096 bytes, over the read
bandwidth measured in the same rounds. Counts are 1 + Poisson(1.2), of either sign; every result is checked.
"""

from __future__ import annotations

import argparse
import itertools

import harness
import torch
from torch.nn import functional as F

from fastsnn_core import SpikeTensor, ops

WIDE, TALL, MATRICES, CALLS = 11008, 4096, 3, 6


def patterns(silent: float, number: int) -> list[torch.Tensor]:
    """Rows of counts ``[1, WIDE]`` in int32."""
    counts = 1 + torch.poisson(torch.full((number, 1, WIDE), 1.2))
    counts *= torch.randint(0, 2, counts.shape) * 2 - 1
    return list((counts * (torch.rand(counts.shape) >= silent)).to(torch.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    codes = [torch.randint(-127, 128, (WIDE, TALL), dtype=torch.int8) for _ in range(MATRICES)]
    inputs = [w.T for w in codes]  # [out, in] as everywhere, stored input-major
    outputs = [w.T.contiguous() for w in codes]
    floats = [w.float() for w in outputs]
    halves = [w.bfloat16() for w in outputs]
    read, size = harness.reader()
    result = {}
    rows = []
    for silent in (0.0, 0.5, 0.7, 0.9, 0.95):
        pool = patterns(silent, 64)
        turn = itertools.count()

        def over(call, weights, kind=None):
            given = [SpikeTensor(p) if kind is None else p.to(kind) for p in pool]

            def run():
                i = next(turn)
                return call(given[i % len(given)], weights[i % MATRICES])

            return run

        for p, w in zip(pool[:4], itertools.cycle(inputs)):
            assert torch.equal(ops.count_linear(SpikeTensor(p), w), p.to(torch.int64) @ w.to(torch.int64).T)
        times = harness.interleave(
            {
                "read": read,
                "event": over(ops.count_linear, inputs),
                "int8": over(ops.count_linear, outputs),
                "float32": over(F.linear, floats, torch.float32),
                "bfloat16": over(F.linear, halves, torch.bfloat16),
            },
            args.rounds, CALLS,
        )  # fmt: skip
        touched = sum(int((p != 0).sum()) for p in pool) / len(pool) * TALL
        bandwidth = size / harness.median(times, "read")
        event = harness.median(times, "event")
        floor = touched / bandwidth
        share = touched / size * harness.ratio(times, "read", "event")
        result[str(silent)] = {
            "event_ms": event * 1e3, "floor_ms": floor * 1e3, "share_of_bandwidth": share,
            "read_gb_s": bandwidth / 1e9, **{f"{k}_ms": harness.median(times, k) * 1e3 for k in times if k != "read"},
            **{f"{k}_over_event": harness.ratio(times, k, "event") for k in times if k not in ("read", "event")},
        }  # fmt: skip
        rows.append(
            [f"{silent:.0%}", event * 1e3, floor * 1e3, f"{share:.0%}", *(harness.ratio(times, k, "event") for k in ("float32", "bfloat16", "int8"))]
        )
        print(harness.table(["silent", "ms", "floor ms", "of bandwidth", "x float32", "x bfloat16", "x int8 dense"], rows[-1:]), flush=True)
        print({k: round(v*1e3,3) for k in times for v in [min(times[k])]})
    harness.emit(result, args.json)


if __name__ == "__main__":
    main()
