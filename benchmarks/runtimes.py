"""One model, two runtimes, real text: do counts, spike trains and membranes give the same perplexity, and to whom?

    python benchmarks/runtimes.py [--bundle wikitext.snn] [--windows 8] [--json out.json]

For each model, with INT8 weights (exact integer sums) and with float ones: perplexity in the count runtime, in the
event runtime of every signed coder (steps calibrated on other windows than those measured, so that wide tokens occur),
and of the replay that finds every train by integrate-and-fire. *logits* says whether all of them are the same bits.
Then whether a stream's logits change with who else is in the batch (alone, 8, 33) or how its prompt is cut; the float
path stands beside it, since that is what other toolkits run. Unary coders need hundreds of steps: they read fewer
tokens.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import harness
import real
import torch
from torch import Tensor
from torch.nn import functional as F

from fastsnn_events import runtime
from fastsnn_integer.quantization import Quant, quantise

CODERS: dict[str, tuple[Any, Any, int]] = {  # coder, steps, tokens to read (0: all)
    "bitwise": ("bitwise", "auto", 0),
    "bitwise, 4 steps": ("bitwise", 4, 0),
    "bitwise, lsb first": ({"kind": "bitwise", "order": "lsb"}, "auto", 0),
    "two's complement": ("twos_complement", "auto", 0),
    "ternary": ("ternary", "auto", 128),
}
CUTS = ([1] * 32, [7, 25], [31, 1], [16, 16], [3, 20, 9])


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    """Of next-token predictions ``[B,T,V]`` for ``tokens [B,T+1]``."""
    return math.exp(float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())))


@torch.no_grad()
def coders(model: Any, windows: Tensor, calibration: Tensor) -> dict[str, Any]:
    """Count, event and replay under every coder."""
    rows = {}
    model(windows[:, :-1])  # kernels are compiled now
    for name, (coder, steps, most) in CODERS.items():
        tokens = windows[:1, : most + 1] if most else windows
        model.runtime("count")
        begin = time.perf_counter()
        wanted = model(tokens[:, :-1])
        middle = time.perf_counter()
        model.runtime("event", coder=coder, steps=steps, calibration=calibration[:, :-1])
        runtime.report(model, clear=True)
        after = time.perf_counter()
        found = model(tokens[:, :-1])
        end = time.perf_counter()
        sites = runtime.report(model)
        replayed = runtime.replay(model, tokens[:, :-1], watch=()).output
        used = [row["steps"] for row in sites.values()]
        rows[name] = {
            "tokens": tokens[:, 1:].numel(),
            "count": perplexity(wanted, tokens),
            "event": perplexity(found, tokens),
            "replay": perplexity(replayed, tokens),
            "same": torch.equal(wanted, found) and torch.equal(wanted, replayed),
            "steps": [min(used), max(used)],
            "wide": sum(row["wide"] for row in sites.values()),
            "of": sum(row["tokens"] for row in sites.values()),
            "times_count": (end - after) / (middle - begin),
        }
    model.runtime("count")
    return rows


@torch.no_grad()
def invariance(model: Any, windows: Tensor) -> dict[str, float]:
    """Largest change of any logit: in a batch of 8 and of 33, and under cuts of the prompt."""
    tokens = windows[torch.arange(33) % len(windows), 1:33]
    alone = torch.cat([model(row[None]) for row in tokens])
    found = {f"batch of {n}": float((model(tokens[:n]) - alone[:n]).abs().max()) for n in (8, 33)}
    worst = 0.0
    for cut in CUTS:
        outs, state = [], None
        for piece in tokens[:4].split(cut, 1):
            y, state = model(piece, state, return_state=True)
            outs.append(y)
        worst = max(worst, float((torch.cat(outs, 1) - alone[:4]).abs().max()))
    return found | {"cut prompts": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real.options(parser)
    parser.set_defaults(windows=9)
    parser.add_argument("--json")
    args = parser.parse_args()
    result: dict[str, Any] = {}
    for one in real.models(args):
        forms = {"INT8": quantise(one.model), "INT8, INT8 cache": quantise(one.model, Quant(kv=True))}
        forms["float"] = one.model
        result[one.name] = {}
        for form, model in forms.items():
            rows = coders(model, one.windows[:-1], one.windows[-1:]) if form != "INT8, INT8 cache" else {}
            apart = invariance(model, one.windows)
            result[one.name][form] = {"coders": rows, "largest_change": apart}
            print(f"{one.name}, {form}: largest change of a logit: ", end="")
            print(", ".join(f"{name} {value:.3g}" for name, value in apart.items()))
            cells = [
                [
                    name, row["tokens"], f"{row['count']:.6f}", f"{row['event']:.6f}", f"{row['replay']:.6f}",
                    "same bits" if row["same"] else "DIFFERENT", "{} … {}".format(*row["steps"]),
                    f"{row['wide']} of {row['of']}", row["times_count"],
                ]
                for name, row in rows.items()
            ]  # fmt: skip
            head = ["coder", "tokens", "count", "event", "replay", "logits", "steps", "wide", "time, x count"]
            if cells:
                print(harness.table(head, cells))
            print()
    harness.emit(result, args.json)


if __name__ == "__main__":
    main()
