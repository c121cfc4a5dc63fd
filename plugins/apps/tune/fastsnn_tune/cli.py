"""The verb ``fastsnn tune``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastsnn_core import bundle, targets
from fastsnn_core.arguments import Parser, number
from fastsnn_core.files import write_text
from fastsnn_tune.dial import RANGE


def main(argv: list[str]) -> int:
    """Make a bundle's model sparser, and draw the curve: perplexity against silent inputs and tokens per second."""
    args = Parser("tune", main.__doc__)
    args.add_argument("bundle", help="a .snn bundle")
    args.add_argument(
        "--text", required=True, help="a UTF-8 text file: its first 60 %% to choose on, the rest to report on"
    )
    goal = args.add_mutually_exclusive_group()
    goal.add_argument(
        "--silent",
        type=number(float, gt=0, lt=1),
        help="silent fraction to reach, as 0.6 (without a goal: only the curve)",
    )
    goal.add_argument("--budget", type=number(float, ge=1), help="how many times the perplexity it may have, as 1.05")
    args.add_argument(
        "--dial",
        default="auto",
        choices=["auto", *RANGE],
        help="dead_zone, k or top where the neurons have them (default: their first)",
    )
    args.add_argument(
        "--mode",
        default="auto",
        choices=["auto", "each", "together"],
        help="each site its own value, all together, or auto: whichever measures better",
    )
    args.add_argument("--seq-len", type=number(int, ge=2), default=256, help="tokens of a window (default 256)")
    args.add_argument("--tokens", type=number(int, ge=64), default=4096, help="tokens to choose on (default 4096)")
    args.add_argument(
        "--decode", type=number(int, ge=0), default=64, help="tokens decoded to measure speed; 0 measures none"
    )
    args.add_argument("--points", type=number(int, ge=2), default=8, help="of the curve (default 8)")
    args.add_argument("--to", "--out", dest="out", help="write the tuned bundle here")
    args.add_argument("--report", help="folder for tune.json and tune.png (default: <bundle>.tune)")
    args.add_argument("--json", action="store_true", help="print tune.json instead of a table")
    opts = args.parse_args(argv)
    if opts.out and opts.silent is None and opts.budget is None:
        args.error("--to needs a goal: --silent or --budget")
    folder = targets.folder(opts.report or Path(opts.bundle).stem + ".tune", [opts.bundle, opts.text], "--report")
    if opts.out:
        targets.bundle(opts.out, [opts.bundle, opts.text, folder], "--to")
    text = targets.read_text(opts.text, "--text")
    from fastsnn_tune.picture import draw
    from fastsnn_tune.search import tune

    tuned = tune(
        bundle.load(opts.bundle),
        text,
        silent=opts.silent,
        budget=opts.budget,
        dial=opts.dial,
        mode=opts.mode,
        seq_len=opts.seq_len,
        calibration_tokens=opts.tokens,
        held_out_tokens=2 * opts.tokens,
        points=opts.points,
        decode_tokens=opts.decode,
    )
    data = tuned.data()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tune.json", json.dumps(data, indent=1) + "\n")
    draw(data, folder / "tune.png")
    if opts.out:
        bundle.save(tuned.model, opts.out)
    print(json.dumps(data) if opts.json else table(data, folder, opts.out))
    return 0


def table(data: dict[str, Any], folder: Path, out: str | None) -> str:
    """The curve as text."""

    def row(p: dict[str, Any]) -> str:
        rates = [f"{v:12.1f}" if v else " " * 12 for v in (p["tokens_per_second"], p["tokens_per_second_w8a"])]
        mark = "  <-" if p == data["after"] else ""
        return f"{p['silent_fraction']:8.1%} {p['perplexity']:12.4f} {rates[0]} {rates[1]}{mark}"

    lines = ["  silent   perplexity     tokens/s tokens/s w8a", *map(row, data["curve"])]
    worse = data["after"]["perplexity"] / data["before"]["perplexity"] - 1
    lines.append(f"perplexity {worse:+.2%} at {data['after']['silent_fraction']:.1%} silent; {folder}/tune.png")
    return "\n".join(lines + ([f"wrote {out}"] if out else []))
