"""The verb ``fastsnn eval``."""

from __future__ import annotations

import json
from typing import Any

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, choice, comma_separated, device, number
from fastsnn_console.tables import figure_lines
from fastsnn_core import bundle
from fastsnn_core.errors import UserError
from fastsnn_text import Sampling, attach, generate_text, load_tokenizer
from fastsnn_train.data.compression import read_whole
from fastsnn_train.evaluation.perplexity import evaluate_text
from fastsnn_train.evaluation.recall import TASKS, Recall, draw_heat_map, recall

HIDDEN = ("recall", "samples", "perplexity_error", "standard_error", "curve", "exits")
PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")


def parser() -> Parser:
    """The options of the verb."""
    args = Parser("eval", evaluate.__doc__)
    args.add_argument("bundle", help="a .snn bundle")
    args.add_argument("--text", help="a text file: perplexity with its standard error, bits per byte, sparsity")
    args.add_argument("--data", help="labelled samples: accuracy, confusion, F1 (or errors), spikes per inference")
    args.add_argument(
        "--task", choices=("classification", "regression", "labelling"), help="of --data; else its targets say"
    )
    args.add_argument("--input", default="", help="column of the inputs of --data")
    args.add_argument("--target", default="", help="column of the targets of --data")
    args.add_argument(
        "--decisions", action="store_true", help="of --data: accuracy against steps and spikes, and by early exit"
    )
    args.add_argument("--seq-len", type=number(int, ge=2), default=512, help="tokens of a window (default 512)")
    args.add_argument("--stride", type=number(int, ge=1), help="windows begin so many tokens apart; else disjoint")
    args.add_argument("--carry", action="store_true", help="one stream: the state goes on from window to window")
    args.add_argument("--start-token", action="store_true", help="begin every window with the tokenizer's start token")
    share = number(float, ge=0, le=1)
    args.add_argument("--begin", "--from", dest="low", type=share, default=0.0, help="at a share of the text (0 … 1)")
    args.add_argument("--end", "--to", dest="high", type=share, default=1.0, help="at a share of the text")
    args.add_argument("--batch", type=number(int, ge=1), default=8, help="windows read at once, at most (default 8)")
    args.add_argument("--runtime", default="count", help="count (default), or event: the same numbers as spike trains")
    args.add_argument("--device", default="cpu", help="where the model runs (default cpu)")
    args.add_argument("--recall", type=comma_separated(), default=[], help="recall tasks, such as passkey,mqar")
    args.add_argument(
        "--lengths",
        type=comma_separated(number(int, ge=1)),
        default=[512, 1024, 2048],
        help="tokens of the recall texts",
    )
    args.add_argument("--depths", type=number(int, ge=1), default=5, help="how many depths of the fact (default 5)")
    args.add_argument("--samples", type=number(int, ge=1), default=10, help="texts per length and depth (default 10)")
    args.add_argument("--heatmap", help="draw recall into this picture")
    args.add_argument("--prompt", action="append", help="continue this text; may be given several times")
    args.add_argument("--max-tokens", type=number(int, ge=1), default=100, help="of a continuation (default 100)")
    args.add_argument(
        "--temperature", type=number(float, ge=0), default=0.8, help="of a continuation; 0 is greedy (default 0.8)"
    )
    args.add_argument("--seed", type=number(int, ge=0), default=0, help="of recall texts and continuations")
    args.add_argument("--tokenizer", help="instead of the bundle's own")
    args.add_argument("--quiet", action="store_true", help="no progress")
    args.add_argument("--json", action="store_true", help="as JSON")
    return args


def evaluate(argv: list[str]) -> int:
    """Perplexity, sparsity, recall and samples of a bundle; accuracy and spikes of a network on labelled samples."""
    args = parser()
    opts = args.parse_args(argv)
    check_request(args, opts)
    quiet = opts.quiet or opts.json
    text = "" if opts.text is None else part_of(read_whole(opts.text), opts)
    model = bundle.load(opts.bundle, device(opts.device))
    if opts.tokenizer:
        attach(model, load_tokenizer(opts.tokenizer))
    if opts.runtime == "event":
        switch: Any = model
        switch.runtime("event")
    result: dict[str, Any] = {}
    if opts.data is not None:
        result |= of_samples(model, opts, quiet)
    if opts.text is not None:
        how = {"start": opts.start_token, "stride": opts.stride, "carry": opts.carry, "batch": opts.batch}
        result |= evaluate_text(model, text, seq_len=opts.seq_len, quiet=quiet, **how)
    grids: dict[str, Recall] = {}
    for task in opts.recall:
        how = {"lengths": opts.lengths, "depths": opts.depths, "samples": opts.samples, "seed": opts.seed}
        grids[task] = recall(model, task, quiet=quiet, **how)
    if grids:
        result["recall"] = {task: grid.table() for task, grid in grids.items()}
        if opts.heatmap:
            result["heatmap"] = str(draw_heat_map(opts.heatmap, grids))
    if opts.prompt:
        sampling = Sampling(temperature=opts.temperature, seed=opts.seed)
        result["samples"] = [
            {"prompt": p, "text": "".join(generate_text(model, p, opts.max_tokens, sampling))} for p in opts.prompt
        ]
    print(json.dumps(result) if opts.json else result_text(result, grids))
    return 0


def check_request(args: Parser, opts: Any) -> None:
    """Reject invalid options before the model is loaded."""
    if opts.text is None and opts.data is None and not opts.recall and not opts.prompt:
        args.error("say what to evaluate: --text FILE, --data SAMPLES, --recall passkey,mqar or --prompt TEXT")
    if opts.data is None and (opts.task or opts.input or opts.target or opts.decisions):
        args.error("--task, --input, --target and --decisions go with --data")
    for task in opts.recall:
        choice(task, list(TASKS), "--recall")
    choice(opts.runtime, ["count", "event"], "--runtime")
    if opts.heatmap and not opts.recall:
        args.error("--heatmap draws --recall, which is not asked for")
    if opts.heatmap:
        targets.file(opts.heatmap, option="--heatmap", suffixes=PICTURES)
    if opts.text is None:
        return
    targets.existing_file(opts.text, "--text")
    if opts.low >= opts.high:
        args.error(f"--begin {opts.low:g} --end {opts.high:g} leaves nothing of the text")
    if opts.stride is not None and opts.stride > opts.seq_len:
        args.error(f"--stride must be at most --seq-len ({opts.seq_len}), got {opts.stride}")
    if opts.carry and opts.stride is not None:
        args.error("--carry reads every token once, with all before it in the state; it has no --stride")


def of_samples(model: Any, opts: Any, quiet: bool) -> dict[str, Any]:
    """Metrics on labelled samples: the test split of --data if it has one, else all of it.

    The objective is the one the model was trained with.
    """
    from fastsnn_train.samples.figures import sample_figures
    from fastsnn_train.samples.of_model import samples_of

    found = samples_of(model, opts.data, x=opts.input, y=opts.target, task=opts.task or "", quiet=quiet)
    figures = sample_figures(model, found.train, found.task, batch=opts.batch * 16, quiet=quiet)
    if opts.decisions:
        from fastsnn_train.samples.decisions import decisions

        figures |= decisions(model, found.train, found.task, batch=opts.batch * 16, quiet=quiet)
    return figures


def part_of(text: str, opts: Any) -> str:
    """The part of the text selected by the options."""
    found = text[int(len(text) * opts.low) : int(len(text) * opts.high)]
    if not found:
        raise UserError(f"--text {opts.text} is empty")
    return found


def result_text(result: dict[str, Any], grids: dict[str, Recall]) -> str:
    """The result as text: perplexity with its standard error first, numbers to five digits."""
    plain = {k: v for k, v in result.items() if k not in (*HIDDEN, "confusion")}
    lines = figure_lines(plain)
    if "perplexity" in result:
        error = result["perplexity_error"]
        windows = f"{result['windows']} window{'s' * (result['windows'] > 1)}, {result['tokens']:,} tokens"
        note = f" ± {error:.2g} ({windows})" if error is not None else f" ({windows}: too few for a standard error)"
        lines[0] += note
    lines += [str(grid) for grid in grids.values()]
    for row in result.get("curve", ()):
        lines.append(f"after step {row['step']:>4}: accuracy {row['accuracy']:.2%}, {row['spikes']:,.0f} spikes")
    for row in result.get("exits", ()):
        took = f"{row['mean_steps']:.2f} steps, {row['spikes']:,.0f} spikes"
        lines.append(f"leaving at a confidence of {row['confidence']:g}: accuracy {row['accuracy']:.2%}, {took}")
    if table := result.get("confusion"):
        wide = len(str(max(max(row) for row in table)))
        lines += ["confusion (row: truth, column: answer):", *(" ".join(f"{n:>{wide}}" for n in row) for row in table)]
    return "\n".join(lines + [f"{row['prompt']}▸{row['text']}" for row in result.get("samples", ())])
