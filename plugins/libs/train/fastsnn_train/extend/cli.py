"""The verb ``fastsnn extend``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastsnn_core import bundle, spec
from fastsnn_train.cli import fit_spec
from fastsnn_train.extend import MODES, ROPES, extend_context
from fastsnn_train.loop.parallel import leave


def extend(argv: list[str]) -> int:
    """Train the model of a run on to a longer context; leaves extended.snn and a report under --out."""
    args = argparse.ArgumentParser(prog="fastsnn extend", description=extend.__doc__)
    args.add_argument("spec", help="the spec of the run")
    args.add_argument("--out", required=True, help="folder of the run (fastsnn fit --out); an unfinished one goes on")
    args.add_argument("--to", required=True, help="new length, or stages of it, such as 2048,8192")
    args.add_argument("--steps", type=int, default=100, help="of each stage (default 100)")
    args.add_argument("--mode", choices=MODES, default="carry", help="how (default carry: chunks, state carried)")
    args.add_argument("--lr", type=float, help="peak learning rate; a tenth of the run's without")
    args.add_argument("--short-share", type=float, default=0.25, help="of the steps, on short sequences (default 0.25)")
    args.add_argument("--gate", type=float, default=0.02, help="how much worse short contexts may get (default 0.02)")
    args.add_argument("--rope", choices=ROPES, default="none", help="rescaling, for softmax and windows that grow")
    args.add_argument("--window", type=int, default=0, help="let sliding windows grow to so many tokens")
    args.add_argument("--resume", action="store_true", help="go on with an extension that was interrupted")
    args.add_argument("--quiet", action="store_true", help="no progress")
    args.add_argument("--json", action="store_true", help="print the result as JSON")
    opts = args.parse_args(argv)
    quiet, out = opts.quiet or opts.json, Path(opts.out)
    trainer, _ = fit_spec(spec.load(opts.spec), out, resume=True, quiet=quiet)
    found = extend_context(
        trainer.model,
        trainer,
        new_seq_len=[int(n) for n in opts.to.split(",")],
        max_steps=opts.steps,
        mode=opts.mode,
        lr=opts.lr,
        short_share=opts.short_share,
        gate=opts.gate,
        rope=opts.rope,
        window=opts.window,
        resume=opts.resume,
        quiet=quiet,
    )
    path = bundle.save(trainer.model, out / "extended.snn")
    report = found.report(out / "extension")
    print(json.dumps(found) if opts.json else f"{found}\n{path}\n{report}")
    world = trainer.world
    del trainer, found
    leave(world)
    return 0
