"""Many streams at once: one pass over the weights for all of them, beside one stream alone and a pass for each.

    python benchmarks/batched.py [--streams 2 4 8 16 32] [--silent 0.5 0.1] [--weights ternary] [--bundle B]
        [--prompts 27 128 512] [--ways 0.5,3 2,0] [--rounds 9] [--json out.json]

The 134 M shape of `benchmarks/decode.py` with random INT8, 4-bit or ternary weights (``--weights``; head and embedding
of ternary ones in 8 bits) at several silent fractions, and a bundle where one is given (SmolLM2 by ``fastsnn convert``
and ``fastsnn export --to w8a``). Rows: ``model.step_many`` of n streams at different places; tokens/s over one stream's
in the same round, and over those of the same streams a pass for each. Bits are compared with the streams alone first.
``--ways``: shares of active inputs (of a row, and of all rows together) from which rows go the dense way, one table row
for each pair; 2,0 is by events alone.
``--prompts``: milliseconds to the logits after so many tokens, read by the layers at once and as rows of
steps (32 a pass, the start of a stream included), whose bits are compared, too.
"""

from __future__ import annotations

import argparse
from typing import Any

import decode
import harness
import torch

from fastsnn_kernel_numba.fused_decoder_rows import DENSE_FROM, DENSE_LEAST

PLACES = (24, 32, 40)  # tokens that streams have seen
BITS = {"INT8": 8, "4 bits": 4, "ternary": 2}
Way = tuple[float, float]


def row(model: Any, tokens: torch.Tensor, count: int, way: Way | None = None, each: bool = False) -> harness.Run:
    """A step of `count` streams, whose logits were compared with each one's alone; with `each` a pass for every one."""
    with torch.inference_mode():
        begun = [model(tokens[:, :n], return_state=True, last=True)[1] for n in PLACES]
        streams = [model.fast(begun[i % len(begun)]) for i in range(count)]
        assert all(stream is not None for stream in streams), model.fast_step
        asked = [int(tokens[0, 7 * i % tokens.shape[1]]) for i in range(count)]
        for i, logits in enumerate(model.step_many(streams, asked)):
            alone = model.fast(begun[i % len(begun)]).step(asked[i])
            assert torch.equal(logits, alone), f"stream {i} of {count}: other bits than alone"

    def run() -> None:
        if each:
            for stream, token in zip(streams, asked, strict=True):
                stream.step(token)
            return
        set_way(streams[0], way)
        model.step_many(streams, asked)

    return run


def set_way(stream: Any, way: Way | None) -> None:
    """From which shares of active inputs on rows go the dense way; what measuring has set where none is given."""
    call = stream.made.call[0]
    call["dense_from"], call["dense_least"] = way or (DENSE_FROM, DENSE_LEAST)


def measure(
    model: Any, tokens: torch.Tensor, counts: list[int], rounds: int, name: str, ways: list[Way]
) -> list[dict[str, Any]]:
    """Tokens/s of n streams over one stream's, and over a pass for each; one row for every way to take."""
    asked: dict[str, Way | None] = {name: None} | {f"{name}, dense from {a:g}, {b:g}": (a, b) for a, b in ways}
    rows = {"1": row(model, tokens, 1)} | {f"each {n}": row(model, tokens, n, each=True) for n in counts}
    rows |= {f"{way} {n}": row(model, tokens, n, pair) for way, pair in asked.items() for n in counts}
    times = harness.interleave(rows, rounds, calls=3)
    print(name, harness.disturbance(times))
    found: list[dict[str, Any]] = []
    for way in asked:
        found.append({"model": way, "ms of one": (harness.median(times, "1") or 0) * 1e3})
        for n in counts:
            ratio = harness.ratio(times, "1", f"{way} {n}")
            found[-1][f"{n} streams"] = None if ratio is None else n * ratio
            found[-1][f"{n} over a pass each"] = harness.ratio(times, f"each {n}", f"{way} {n}")
    return found


def numbers(text: str) -> Way:
    """``0.5,3``."""
    one, _, all_rows = text.partition(",")
    return float(one), float(all_rows)


@torch.inference_mode()
def prompt(model: Any, tokens: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Milliseconds to the logits after a prompt ``[1, T]``, by the layers and by rows of steps."""
    ids = tokens[0].tolist()

    def layers() -> torch.Tensor:
        with torch.inference_mode():
            return model(tokens, return_state=True, last=True)[0][0, -1]

    def rows() -> torch.Tensor:
        with torch.inference_mode():
            return model.fast(None, room=len(ids)).read(ids)

    assert torch.equal(layers(), rows()), "a prompt by rows: other bits than by the layers"
    times = harness.interleave({"layers": layers, "rows": rows}, rounds)
    print(f"prompt of {len(ids)}", harness.disturbance(times))
    ms = {name: (harness.median(times, name) or 0) * 1e3 for name in ("layers", "rows")}
    return {"tokens": len(ids), **ms, "ratio": harness.ratio(times, "layers", "rows")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="*", default=[2, 4, 8, 16, 32])
    parser.add_argument("--silent", type=float, nargs="*", default=[0.5, 0.1])
    parser.add_argument("--weights", choices=list(BITS), default="INT8", help="of the random model")
    parser.add_argument("--ways", type=numbers, nargs="*", default=[], metavar="ROW,ALL")
    parser.add_argument("--bundle", help="a bundle to measure, too")
    parser.add_argument("--prompts", type=int, nargs="*", default=[], help="tokens of prompts of the bundle's")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.prompts and not args.bundle:
        parser.error("--prompts are of a --bundle")
    results, prompts = [], []
    if args.silent:
        attention, tokens = ["gla", "sliding_window"], torch.randint(0, 32000, (1, 64))
        eight = decode.network(attention, 3.0)
        model = eight if args.weights == "INT8" else decode.network(attention, 3.0, BITS[args.weights])
        for silent in args.silent:
            decode.set_k(model, decode.find_k(eight, silent, tokens))  # of INT8 weights, whatever is measured
            name = f"134 M, {args.weights}, {silent:.0%} silent"
            results += measure(model, tokens, args.streams, args.rounds, name, args.ways)
    if args.bundle:
        from fastsnn_core import bundle
        from fastsnn_text import tokenizer_of

        model = bundle.load(args.bundle).eval()
        tokens = torch.tensor([tokenizer_of(model).encode(decode.TEXT)[:64]])
        if args.streams:
            results += measure(model, tokens, args.streams, args.rounds, "bundle", args.ways)
        for length in args.prompts:
            repeated = tokens.repeat(1, -(-length // tokens.shape[1]))[:, :length]
            prompts.append(prompt(model, repeated, args.rounds))
    names = ["ms of one", *(f"{n} streams" for n in args.streams)]
    print(
        harness.table(["tokens/s over one stream's", *names], [[r["model"], *(r[n] for n in names)] for r in results])
    )
    over = [f"{n} over a pass each" for n in args.streams]
    print(harness.table(["tokens/s over a pass each", *over], [[r["model"], *(r[n] for n in over)] for r in results]))
    if prompts:
        print(harness.table(["prompt, ms", *list(prompts[0])[1:]], [list(row.values()) for row in prompts]))
    harness.emit({"rows": results, "prompts": prompts}, args.json)


if __name__ == "__main__":
    main()
