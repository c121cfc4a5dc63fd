"""Many streams at once: one pass over INT8 weights for all of them, beside one stream alone.

    python benchmarks/batched.py [--streams 2 4 8 16 32] [--silent 0.5 0.1] [--bundle B] [--prompts 27 128 512]
        [--rounds 9] [--json out.json]

The 134 M shape of `benchmarks/decode.py` with random weights at several silent fractions, and a W8A bundle where one
is given (SmolLM2 by ``fastsnn convert`` and ``fastsnn export --to w8a``). Rows: ``model.step_many`` of n streams at
different places; tokens/s over one stream's in the same round. Bits are compared with the streams alone first.
``--prompts``: milliseconds to the logits after so many tokens, read by the layers at once and as rows of
steps (32 a pass, the start of a stream included), whose bits are compared, too.
"""

from __future__ import annotations

import argparse
from typing import Any

import decode
import harness
import torch

PLACES = (24, 32, 40)  # tokens that streams have seen


def row(model: Any, tokens: torch.Tensor, count: int) -> harness.Run:
    """A step of `count` streams, whose logits were compared with each one's alone."""
    with torch.inference_mode():
        begun = [model(tokens[:, :n], return_state=True, last=True)[1] for n in PLACES]
        streams = [model.fast(begun[i % len(begun)]) for i in range(count)]
        assert all(stream is not None for stream in streams), model.fast_step
        asked = [int(tokens[0, 7 * i % tokens.shape[1]]) for i in range(count)]
        for i, logits in enumerate(model.step_many(streams, asked)):
            alone = model.fast(begun[i % len(begun)]).step(asked[i])
            assert torch.equal(logits, alone), f"stream {i} of {count}: other bits than alone"

    def run() -> None:
        model.step_many(streams, asked)

    return run


def measure(model: Any, tokens: torch.Tensor, counts: list[int], rounds: int, name: str) -> dict[str, Any]:
    """Tokens/s of n streams over one stream's."""
    rows = {str(n): row(model, tokens, n) for n in (1, *counts)}
    times = harness.interleave(rows, rounds, calls=3)
    print(name, harness.disturbance(times))
    found: dict[str, Any] = {"model": name, "ms of one": (harness.median(times, "1") or 0) * 1e3}
    for n in counts:
        ratio = harness.ratio(times, "1", str(n))
        found[f"{n} streams"] = None if ratio is None else n * ratio
    return found


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
    parser.add_argument("--bundle", help="a W8A bundle to measure, too")
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
        model, tokens = decode.network(["gla", "sliding_window"], 3.0), torch.randint(0, 32000, (1, 64))
        for silent in args.silent:
            k = decode.find_k(model, silent, tokens)
            decode.set_k(model, k)
            results.append(measure(model, tokens, args.streams, args.rounds, f"134 M, {silent:.0%} silent"))
    if args.bundle:
        from fastsnn_core import bundle
        from fastsnn_text import tokenizer_of

        model = bundle.load(args.bundle).eval()
        tokens = torch.tensor([tokenizer_of(model).encode(decode.TEXT)[:64]])
        if args.streams:
            results.append(measure(model, tokens, args.streams, args.rounds, "bundle"))
        for length in args.prompts:
            repeated = tokens.repeat(1, -(-length // tokens.shape[1]))[:, :length]
            prompts.append(prompt(model, repeated, args.rounds))
    names = ["ms of one", *(f"{n} streams" for n in args.streams)]
    print(
        harness.table(["tokens/s over one stream's", *names], [[r["model"], *(r[n] for n in names)] for r in results])
    )
    if prompts:
        print(harness.table(["prompt, ms", *list(prompts[0])[1:]], [list(row.values()) for row in prompts]))
    harness.emit({"rows": results, "prompts": prompts}, args.json)


if __name__ == "__main__":
    main()
