"""The verbs ``fastsnn run``, ``generate`` and ``export``."""

from __future__ import annotations

import json
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, number
from fastsnn_console.progress import Progress
from fastsnn_core.errors import UserError


def run(argv: list[str]) -> int:
    """Do everything a spec says: build, train, look at the spikes, and leave one bundle with its report."""
    args = Parser("run", run.__doc__)
    args.add_argument("spec", help="a TOML spec")
    args.add_argument("--out", help="folder for everything (default: runs/<spec name>)")
    args.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    args.add_argument("--json", action="store_true", help="as JSON")
    opts = args.parse_args(argv)
    from fastsnn import FastSNN
    from fastsnn_core import bundle, spec
    from fastsnn_train.cli import fit_spec

    found = spec.load(opts.spec)
    out = targets.folder(opts.out or Path("runs", Path(opts.spec).stem), [opts.spec], "--out")
    targets.bundle(out / "model.snn", [opts.spec], "--out")
    targets.folder(out / "report", option="--out")
    trainer, path = fit_spec(found, out, resume=opts.resume, quiet=opts.json)
    report = FastSNN.scope(trainer.model).report(out / "report")
    bundle.save(trainer.model, path, report=report.parent if report.is_file() else report)
    result = {
        "bundle": str(path),
        "report": str(report),
        "steps": trainer.step,
        **(trainer.history[-1] if trainer.history else {}),
    }
    print(json.dumps(result) if opts.json else "\n".join(f"{k}: {v}" for k, v in result.items()))
    return 0


def generate(argv: list[str]) -> int:
    """Continue a prompt with a bundle's model."""
    args = Parser("generate", generate.__doc__)
    args.add_argument("bundle", help="a .snn bundle")
    args.add_argument("--prompt", required=True, help="text to continue; '-' reads standard input")
    args.add_argument("--max-tokens", type=number(int, ge=1), default=128, help="at most so many (default 128)")
    args.add_argument("--temperature", type=number(float, ge=0), default=1.0, help="0 is greedy (default 1)")
    args.add_argument("--greedy", action="store_true", help="temperature 0")
    args.add_argument("--top-p", type=number(float, gt=0, le=1), default=1.0, help="nucleus sampling (default 1: off)")
    args.add_argument("--top-k", type=number(int, ge=0), default=0, help="only the likeliest tokens (default 0: all)")
    args.add_argument("--seed", type=number(int, ge=0, lt=2**63), help="the same seed gives the same text")
    args.add_argument("--stop", action="append", default=[], help="stop at this text (repeatable)")
    args.add_argument("--chat", action="store_true", help="the prompt is a message: put it into the chat template")
    args.add_argument("--system", help="a system prompt (with --chat)")
    args.add_argument("--json", action="store_true", help="as JSON, with tokens per second")
    opts = args.parse_args(argv)
    if opts.system is not None and not opts.chat:
        args.error("--system needs --chat")
    from fastsnn import FastSNN

    prompt = standard_input() if opts.prompt == "-" else opts.prompt
    model = FastSNN.load(opts.bundle)
    temperature = 0.0 if opts.greedy else opts.temperature
    settings = {
        "temperature": temperature,
        "top_p": opts.top_p,
        "top_k": opts.top_k,
        "seed": opts.seed,
        "stop": tuple(opts.stop),
    }
    ids: str | list[int] = prompt
    if opts.chat:
        from fastsnn_text.chat import chat_prompt

        ids, stops = chat_prompt(model, prompt, opts.system)
        settings["stop"] = (*opts.stop, *stops)
    began, text, spoke = time.perf_counter(), list[str](), 0.0
    pieces = FastSNN.stream(model, ids, opts.max_tokens, **settings)
    with Progress("reading the prompt (a first run compiles kernels)", quiet=opts.json):
        first = next(pieces, None)
    for piece in chain([] if first is None else [first], pieces):
        if not text and not opts.json and not opts.chat:  # not before: an error stands on a line of its own
            print(prompt, end="")
        text.append(piece)
        spoke = spoke or time.perf_counter()
        if not opts.json:
            print(piece, end="", flush=True)
    done, said = time.perf_counter(), "".join(text)
    if opts.json:
        from fastsnn_text import tokenizer_of

        tokens = len(tokenizer_of(model).encode(said))
        rate = (tokens - 1) / (done - spoke) if tokens > 1 and done > spoke else None  # after the first
        rates = {
            "tokens": tokens,
            "seconds": round(done - began, 3),
            "seconds_to_first": round((spoke or done) - began, 3),
            "tokens_per_second": rate and round(rate, 1),
        }
        print(json.dumps({"prompt": prompt, "text": said, **rates}))
    else:
        print("" if text else prompt)
    return 0


def standard_input() -> str:
    """All of standard input as UTF-8 text."""
    try:
        return sys.stdin.buffer.read().decode("utf-8") if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is no UTF-8 text: byte {error.start}") from None


def export(argv: list[str]) -> int:
    """Write a bundle as something else: another bundle, or any installed exporter's format."""
    args = Parser("export", export.__doc__)
    args.add_argument("bundle", help="a .snn bundle")
    args.add_argument("out", help="what to write")
    args.add_argument("--to", default="snn", help="snn, or an installed exporter (fastsnn plugins --kind exporter)")
    args.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the exporter")
    args.add_argument(
        "--text",
        help="measure perplexity before and after on this text file (default: 20,000 characters of Python's docs)",
    )
    args.add_argument("--report", action="store_true", help="look at the spikes, and put SpikeScope's report inside")
    args.add_argument("--json", action="store_true", help="as JSON")
    opts = args.parse_args(argv)
    from fastsnn import FastSNN
    from fastsnn.checks import check_target, exporter_of

    given = settings_of(opts.set)
    if opts.report and opts.to != "snn":
        args.error("--report goes with --to snn")
    exporter = exporter_of(opts.to, **given)
    check_target(opts.out, exporter, [opts.bundle, *([opts.text] if opts.text else ())], "OUT")
    text = targets.read_text(opts.text, "--text") if opts.text else sample_prose()
    model = FastSNN.load(opts.bundle)
    if opts.report:
        given["report"] = True
    path = FastSNN.export(model, opts.out, to=opts.to, **given)
    result: dict[str, Any] = {"path": str(path), "bytes": weight(path), "bytes_before": weight(Path(opts.bundle))}
    if (path / "config.json").is_file() and (opts.text or getattr(model, "meta", {}).get("tokenizer")):
        from fastsnn_train import evaluate_text

        result["perplexity_before"] = evaluate_text(model, text)["perplexity"]
        del model  # one set of weights at a time
        result["perplexity"] = evaluate_text(FastSNN.load(path), text)["perplexity"]
    if opts.json:
        print(json.dumps(result))
        return 0
    print(f"{path}  {result['bytes']:,} bytes, {result['bytes'] / result['bytes_before']:.3f} of {opts.bundle}")
    if "perplexity" in result:
        before, after = result["perplexity_before"], result["perplexity"]
        where = opts.text or "Python's documentation"
        print(f"perplexity on {where}: {before:.4f} before, {after:.4f} after ({after / before - 1:+.2%})")
    return 0


def sample_prose() -> str:
    """Prose that every machine with Python has, to compare a model with itself on."""
    from pydoc_data.topics import topics

    return "\n\n".join(text for _, text in sorted(topics.items()))[:20000]


def settings_of(rows: list[str]) -> dict[str, Any]:
    """``["group=128", "kv=true"]`` as keywords, values written as in TOML."""
    import tomli

    found = {}
    for row in rows:
        key, equals, value = row.partition("=")
        if not equals:
            raise UserError(f"--set takes KEY=VALUE, got {row!r}")
        try:
            found[key.strip()] = tomli.loads(f"value = {value}")["value"]
        except tomli.TOMLDecodeError:
            found[key.strip()] = value.strip()
    return found


def weight(path: Path) -> int:
    """Bytes of a file, or of everything in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
