"""The verb ``fastsnn extend``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, choice, comma_separated, number
from fastsnn_core import bundle, spec
from fastsnn_core.errors import UserError
from fastsnn_train.cli import fit_spec
from fastsnn_train.config import DataConfig
from fastsnn_train.extend import MODES, ROPES, extend_context
from fastsnn_train.extend.reshape import shaped
from fastsnn_train.loop import checkpoint
from fastsnn_train.loop.parallel import leave_group


def extend(argv: list[str]) -> int:
    """Continue training a run at a longer context; writes extended.snn and a report under --out."""
    args = Parser("extend", extend.__doc__)
    args.add_argument("spec", help="the spec of the run")
    args.add_argument(
        "--out", required=True, help="folder of the run (fastsnn fit --out); an unfinished run is finished first"
    )
    args.add_argument(
        "--to",
        required=True,
        type=comma_separated(number(int, ge=2)),
        help="new length, or stages of it, such as 2048,8192",
    )
    args.add_argument("--steps", type=number(int, ge=0), default=100, help="training steps of each stage (default 100)")
    args.add_argument(
        "--mode", default="carry", help=f"{', '.join(MODES)} (default carry: chunk by chunk, the state carried over)"
    )
    args.add_argument("--lr", type=number(float, gt=0), help="peak learning rate (default: a tenth of the run's)")
    args.add_argument(
        "--short-share", type=number(ge=0, lt=1), default=0.25, help="share of steps on short sequences (default 0.25)"
    )
    args.add_argument(
        "--gate",
        type=number(ge=0),
        default=0.02,
        help="largest relative rise of the held-out loss on short contexts (default 0.02)",
    )
    args.add_argument(
        "--rope",
        default="none",
        help=f"{', '.join(ROPES)}: scaling of rotary positions, for softmax and growing windows",
    )
    args.add_argument(
        "--window",
        type=number(int, ge=0),
        default=0,
        help="new width of sliding windows, tokens (default: as they are)",
    )
    args.add_argument("--resume", action="store_true", help="continue an interrupted extension")
    args.add_argument("--quiet", action="store_true", help="no progress")
    args.add_argument("--json", action="store_true", help="print the result as JSON")
    opts = args.parse_args(argv)
    found = spec.load(opts.spec)
    out = check_run_folder(found, opts)
    quiet = opts.quiet or opts.json
    trainer, _ = fit_spec(found, out, resume=True, quiet=quiet)
    proof = extend_context(
        trainer.model,
        trainer,
        new_seq_len=opts.to,
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
    report = proof.report(out / "extension")
    print(json.dumps(proof) if opts.json else f"{proof}\n{path}\n{report}")
    world = trainer.world
    del trainer, proof
    leave_group(world)
    return 0


def check_run_folder(found: spec.Spec, opts: Any) -> Path:
    """The folder of the run; what cannot be is refused before anything is trained."""
    choice(opts.mode, list(MODES), "--mode")
    choice(opts.rope, list(ROPES), "--rope")
    data: Any = found.sections.get("data", DataConfig())
    if any(b <= a for a, b in zip([data.seq_len, *opts.to], opts.to)):
        raise UserError(f"--to: lengths must rise from the run's seq_len of {data.seq_len}, got {opts.to}")
    if data.streaming:
        raise UserError("extend needs a packed corpus; a streamed one ([data] streaming) is cut as it comes")
    if opts.rope != "none" or opts.window:
        for length in opts.to:
            shaped(found.model, original=data.seq_len, length=length, rope=opts.rope, window=opts.window)
    out = targets.folder(opts.out, option="--out")
    if not checkpoint.found(out / "checkpoints"):
        raise UserError(
            f"--out {out} holds no run (no checkpoints); begin one with: fastsnn fit {opts.spec} --out {out}"
        )
    targets.bundle(out / "extended.snn")
    targets.folder(out / "extension")
    return out
