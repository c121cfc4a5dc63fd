"""The verb ``fastsnn tune``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, number
from fastsnn_core import bundle
from fastsnn_core.errors import UserError
from fastsnn_core.files import write_text
from fastsnn_tune.dial import RANGE

SPOILT = 1.0  # a perplexity of twice what it was: more than a goal says is lost


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
    goal.add_argument(
        "--loss",
        help="perplexity that may be lost, as 0.01 or 0.01,0.05: silent bytes at each (the share of the projections' "
        "weights that need not be read), on text that took no part; --to writes the model at the first",
    )
    args.add_argument("--criterion", help="with --loss: teal, teal_shares, wina, spon, fisher, ours (default)")
    args.add_argument(
        "--windows", type=number(int, ge=2), help="with --loss: windows to measure on (default: a minute's worth)"
    )
    args.add_argument("--quiet", action="store_true", help="no progress bars")
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
    args.add_argument("--seq-len", type=number(int, ge=2), help="tokens of a window (default 256; with --loss 512)")
    args.add_argument("--tokens", type=number(int, ge=64), help="tokens to choose on (default 4096; large models 1024)")
    args.add_argument(
        "--decode", type=number(int, ge=0), default=64, help="tokens decoded to measure speed; 0 measures none"
    )
    args.add_argument("--points", type=number(int, ge=2), default=8, help="of the curve (default 8)")
    args.add_argument("--to", "--out", dest="out", help="write the tuned bundle here")
    args.add_argument("--report", help="folder for tune.json and tune.png (default: <bundle>.tune)")
    args.add_argument("--json", action="store_true", help="print tune.json instead of a table")
    opts = args.parse_args(argv)
    if opts.out and opts.silent is None and opts.budget is None and opts.loss is None:
        args.error("--to needs a goal: --silent, --budget or --loss")
    if opts.loss is None and (odd := [f"--{n}" for n in ("criterion", "windows") if getattr(opts, n) is not None]):
        args.error(f"{', '.join(odd)} goes with --loss")
    folder = targets.folder(opts.report or Path(opts.bundle).stem + ".tune", [opts.bundle, opts.text], "--report")
    if opts.out:
        targets.bundle(opts.out, [opts.bundle, opts.text, folder], "--to")
    text = targets.read_text(opts.text, "--text")
    return loss_goal(opts, text, folder) if opts.loss is not None else other_goals(opts, text, folder)


def other_goals(opts: argparse.Namespace, text: str, folder: Path) -> int:
    """A silent fraction, a budget, or only the curve."""
    from fastsnn_tune.picture import draw_curve
    from fastsnn_tune.search import tune

    tuned = tune(
        bundle.load(opts.bundle),
        text,
        silent=opts.silent,
        budget=opts.budget,
        dial=opts.dial,
        mode=opts.mode,
        seq_len=opts.seq_len or 256,
        calibration_tokens=opts.tokens,
        points=opts.points,
        decode_tokens=opts.decode,
        quiet=opts.quiet,
    )
    return written(opts, tuned, folder, draw_curve, curve_text)


def written(
    opts: argparse.Namespace, tuned: Any, folder: Path, draw: Callable[..., None], says: Callable[..., str]
) -> int:
    """Write the data, the picture and the bundle of a tuned model, and print its table (or the data)."""
    data = tuned.data()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tune.json", json.dumps(data, indent=1) + "\n")
    draw(data, folder / "tune.png")
    if opts.out:
        bundle.save(tuned.model, opts.out)
    print(json.dumps(data) if opts.json else says(data, folder, opts.out))
    return 0


def loss_goal(opts: argparse.Namespace, text: str, folder: Path) -> int:
    """Silent bytes at a loss."""
    from fastsnn_tune.loss_goal import tune_to_loss
    from fastsnn_tune.picture import draw_losses

    try:
        losses = tuple(float(part) for part in opts.loss.split(","))
    except ValueError:
        raise UserError(f"--loss {opts.loss}: give numbers, as 0.01 or 0.01,0.05") from None
    tuned = tune_to_loss(
        bundle.load(opts.bundle),
        text,
        losses=losses,
        criterion=opts.criterion or "ours",
        seq_len=opts.seq_len or 512,
        windows=opts.windows,
        quiet=opts.quiet,
    )
    return written(opts, tuned, folder, draw_losses, losses_table)


def losses_table(data: dict[str, Any], folder: Path, out: str | None) -> str:
    """Silent bytes at each loss as text."""

    def row(what: str, m: dict[str, Any] | None) -> str:
        if m is None:
            return f"{what:16} out of reach: even the finest dead zones cost more"
        error = "" if m["ratio_error"] is None else f" ± {m['ratio_error']:.4f}"
        times = f"×{m['ratio']:.4f}{error}"
        return f"{what:16} {m['silent_bytes']:7.1%} silent bytes, perplexity {m['perplexity']:.3f} ({times})"

    lines = [f"dense perplexity {data['perplexity_dense']:.3f}; criterion {data['criterion']}"]
    lines.append(row("as it was given", data["given"]))
    lines += [row(f"at {100 * float(loss):g} % loss", m) for loss, m in data["at"].items()]
    lines.append(f"curve: {folder}/tune.json, tune.png")
    return "\n".join(lines + ([f"wrote {out}"] if out else []))


def curve_text(data: dict[str, Any], folder: Path, out: str | None) -> str:
    """The curve as text."""

    def row(p: dict[str, Any]) -> str:
        rates = [f"{v:12.1f}" if v else " " * 12 for v in (p["tokens_per_second"], p["tokens_per_second_w8a"])]
        mark = "  <-" if p == data["after"] else ""
        return f"{p['silent_fraction']:8.1%} {p['perplexity']:12.4f} {rates[0]} {rates[1]}{mark}"

    lines = ["  silent   perplexity     tokens/s tokens/s w8a", *map(row, data["curve"])]
    worse = data["after"]["perplexity"] / data["before"]["perplexity"] - 1
    lines.append(f"perplexity {worse:+.2%} at {data['after']['silent_fraction']:.1%} silent; {folder}/tune.png")
    if worse > SPOILT:
        lines.append(
            f"that is {1 + worse:.3g} times the perplexity: most of what the model knew is lost; "
            "a smaller --silent, or --budget 1.05, keeps it"
        )
    return "\n".join(lines + ([f"wrote {out}"] if out else []))
