"""The verb ``fastsnn heal``."""

from __future__ import annotations

import json
from typing import Any

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, number


def main(argv: list[str]) -> int:
    """Heal a converted language model, tuned or not: it learns to say what the dense one says, with its spikes on."""
    args = Parser("heal", main.__doc__)
    args.add_argument("bundle", help="a .snn bundle of a converted language model")
    args.add_argument("--teacher", required=True, help="what it was converted from: a directory or a .gguf file")
    args.add_argument("--text", help="a UTF-8 text to heal on; without it the dense model writes text")
    args.add_argument("--minutes", type=number(float, gt=0), help="for so long")
    args.add_argument("--steps", type=number(int, ge=1), help="or for so many steps")
    args.add_argument("--constants", action="store_true", help="biases, centres and gains of norms only")
    args.add_argument(
        "--lr",
        type=number(float, gt=0),
        help="peak rate of the weights (default: follows the width; "
        "weights of a model of 10 million parameters and more are trained only where it is given)",
    )
    args.add_argument("--lr-constants", type=number(float, gt=0), help="peak rate of the constants (default: by width)")
    args.add_argument("--activation", help="relu: what the feed-forward layers' activation becomes while it is healed")
    args.add_argument(
        "--l1", type=number(float, ge=0), help="with --activation: weight of the hidden channels' magnitude"
    )
    args.add_argument("--teacher-cache", help="a folder that keeps what the teacher says, for other runs on this text")
    args.add_argument("--to", required=True, help="the bundle to write")
    args.add_argument("--out", help="a folder for checkpoints")
    args.add_argument("--resume", action="store_true", help="go on from the newest of them")
    args.add_argument("--quiet", action="store_true", help="no progress bars")
    args.add_argument("--json", action="store_true", help="the log as JSON")
    opts = args.parse_args(argv)
    if (opts.minutes is None) == (opts.steps is None):
        args.error("give --minutes or --steps, one of the two")
    if opts.resume and not opts.out:
        args.error("--resume needs --out, the folder that the run was kept in")
    targets.existing(opts.teacher)
    if opts.text:
        targets.read_text(opts.text, "--text")
    targets.bundle(opts.to, [s for s in (opts.bundle, opts.teacher, opts.text) if s], "--to")
    if opts.out:
        targets.folder(opts.out, [opts.bundle, opts.teacher], "--out")
    from fastsnn_convert.language.distillation import heal
    from fastsnn_core import bundle

    model: Any = bundle.load(opts.bundle)
    settings: dict[str, Any] = {
        "steps": opts.steps,
        "minutes": opts.minutes,
        "lr": opts.lr,
        "lr_constants": opts.lr_constants,
        "teacher_cache": opts.teacher_cache,
    }
    if opts.l1 is not None and opts.activation is None:
        args.error("--l1 goes with --activation")
    settings |= {key: getattr(opts, key) for key in ("activation", "l1") if getattr(opts, key) is not None}
    if opts.constants:
        settings["constants_first"] = 1.0
    log = heal(model, opts.teacher, opts.text, out=opts.out, resume=opts.resume, quiet=opts.quiet, **settings)
    last = log[-1] if log else {}
    meta = dict(getattr(model, "meta", {}))
    done = {"what": "heal", "healed": log, "constants": opts.constants}
    model.meta = meta | {"milestones": [*meta.get("milestones", []), done]}
    bundle.save(model, opts.to)
    if opts.json:
        print(json.dumps(log))
    else:
        print(f"healed in {last.get('step', 0)} steps, KL {last.get('kl', float('nan')):.4f} nats\nwrote {opts.to}")
    return 0
