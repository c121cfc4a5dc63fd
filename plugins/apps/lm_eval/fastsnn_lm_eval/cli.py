"""The verb ``fastsnn lm-eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, comma_separated, number
from fastsnn_console.arguments import device as check_device
from fastsnn_core.errors import FastSNNError, MissingError, UserError
from fastsnn_core.files import write_text


def main(argv: list[str]) -> int:
    """Run lm-evaluation-harness tasks on a bundle."""
    args = Parser("lm-eval", main.__doc__)
    args.add_argument("bundle", help="a .snn bundle")
    args.add_argument(
        "--tasks", required=True, type=comma_separated(), help="task names, such as lambada_openai,arc_easy"
    )
    args.add_argument("--include", help="folder with task YAML files of your own; only these are looked at")
    args.add_argument("--with-builtin", action="store_true", help="the harness' own tasks besides those of --include")
    args.add_argument(
        "--fewshot", type=number(int, ge=0), help="examples in front of each question; the task's own number without"
    )
    args.add_argument("--limit", type=number(int, ge=1), help="only so many documents per task: for a first look")
    args.add_argument("--batch-size", type=number(int, ge=1), default=8, help="texts scored at once (default 8)")
    args.add_argument(
        "--window", type=number(int, ge=0), default=0, help="tokens of a window in whole-text tasks; 0: one stream"
    )
    args.add_argument("--device", default="cpu", help="where the model runs (default cpu)")
    args.add_argument("--out", help="write all results as JSON into this file")
    args.add_argument("--json", action="store_true", help="print the results as JSON")
    opts = args.parse_args(argv)
    if opts.out:
        targets.file(opts.out, [opts.bundle], "--out")
    if opts.include and not Path(opts.include).is_dir():
        raise UserError(f"--include {opts.include} is no folder")
    check_device(opts.device)
    result = evaluate_tasks(
        opts.bundle,
        opts.tasks,
        include=opts.include,
        builtin=opts.with_builtin or not opts.include,
        fewshot=opts.fewshot,
        limit=opts.limit,
        model={"batch_size": opts.batch_size, "window": opts.window, "device": opts.device},
    )
    if opts.out:
        write_text(Path(opts.out), json.dumps(result, indent=1, default=str) + "\n")
    if opts.json:
        print(json.dumps(result["results"], default=str))
        return 0
    for task, row in result["results"].items():
        for name, value in row.items():
            if isinstance(value, float) and "stderr" not in name:
                print(f"{task:<24} {name.partition(',')[0]:<20} {value:.4f}")
    return 0


def evaluate_tasks(
    bundle: Any,
    tasks: list[str],
    *,
    include: str | None = None,
    builtin: bool = True,
    fewshot: int | None = None,
    limit: int | None = None,
    model: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The harness' results on a bundle (or a built model): ``results``, ``configs``, ``versions``; no samples.

    `include` is a folder of task files, `builtin` says whether the harness' own tasks count too. Unknown tasks are a
    `ValueError` that says what there is.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingError("lm-evaluation-harness is not installed; pip install fastsnn-lm-eval") from None
    from fastsnn_lm_eval.model import FastSNNLM

    manager = TaskManager(include_path=include, include_defaults=builtin)
    missing = [t for t in tasks if t not in manager.all_tasks]
    if missing:
        known = sorted(manager.all_tasks)
        more = f"{', '.join(known[:8])}{' …' if len(known) > 8 else ''}" if known else "none"
        raise FastSNNError(f"there is no task {', '.join(missing)}; {len(known)} known here: {more}")
    result = simple_evaluate(
        model=FastSNNLM(bundle, **(model or {})),
        tasks=tasks,
        task_manager=manager,
        num_fewshot=fewshot,
        limit=limit,
        log_samples=False,
        bootstrap_iters=0,
    )
    assert result is not None  # only other ranks of a distributed run get None
    return {k: result[k] for k in ("results", "configs", "versions", "n-samples") if k in result}
