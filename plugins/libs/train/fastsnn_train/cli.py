"""The verbs ``fastsnn fit`` and ``fastsnn eval``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import attrs

from fastsnn_core import build, bundle, spec
from fastsnn_core.cli import UserError
from fastsnn_core.component import bounds_of, fields
from fastsnn_core.files import write_text
from fastsnn_text import Sampling, attach, generate_text, load_tokenizer
from fastsnn_train.config import DataConfig, TrainConfig
from fastsnn_train.data.packing import Data, load_data
from fastsnn_train.data.prepare import check_vocabulary
from fastsnn_train.evaluation.perplexity import evaluate_text
from fastsnn_train.evaluation.recall import draw, recall
from fastsnn_train.loop.parallel import World, join, leave
from fastsnn_train.loop.trainer import Trainer, TrainingError


def fit(argv: list[str]) -> int:
    """Train the model of a spec on its [data], and leave a bundle under --out."""
    args = argparse.ArgumentParser(prog="fastsnn fit", description=fit.__doc__)
    args.add_argument("spec", help="a TOML spec with [model], and optionally [data] and [train]")
    args.add_argument("--out", required=True, help="folder for model.snn, checkpoints and log.jsonl")
    args.add_argument("--resume", action="store_true", help="go on from the newest checkpoint under --out")
    args.add_argument("--steps", type=int, help="instead of [train] max_steps")
    args.add_argument("--quiet", action="store_true", help="no progress")
    args.add_argument("--json", action="store_true", help="print the result as JSON")
    args.add_argument("--settings", action="store_true", help="list what [data] and [train] may say, and stop")
    if "--settings" in argv:
        print(settings())
        return 0
    opts = args.parse_args(argv)
    found = spec.load(opts.spec)
    out, quiet = Path(opts.out), opts.quiet or opts.json
    try:
        trainer, path = fit_spec(found, out, resume=opts.resume, steps=opts.steps, quiet=quiet)
    except TrainingError as error:
        raise UserError(str(error)) from None
    except KeyboardInterrupt as stop:
        if str(stop):
            print(f"fastsnn: {stop}; its checkpoint is under {out}, --resume goes on from there", file=sys.stderr)
        raise
    last: dict[str, Any] = {}
    for row in trainer.history[-2:]:
        last |= row
    result = {"bundle": str(path), "steps": trainer.step} | {k: v for k, v in last.items() if k != "step"}
    if trainer.world.leader:
        lines = [f"{k}: {v}" for k, v in result.items() if not isinstance(v, dict)]
        print(json.dumps(result) if opts.json else "\n".join(lines))
    world = trainer.world
    del trainer
    leave(world)
    return 0


def settings() -> str:
    """Every setting of the two sections: name, default, what it is, unit and bounds."""
    lines = []
    for section in (DataConfig, TrainConfig):
        table = spec.to_table(section())
        lines.append(f"[{section.name}]  {section.__doc__}")
        for field in fields(section):
            bounds = bounds_of(field)
            more = ", ".join(text for text in (bounds.unit, bounds.describe()) if text)
            lines.append(f"  {field.name} = {json.dumps(table[field.name])}  {bounds.doc}{more and f' ({more})'}")
    return "\n".join(lines)


def fit_spec(
    found: spec.Spec, out: Path, *, resume: bool = False, steps: int | None = None, quiet: bool = False
) -> tuple[Trainer, Path]:
    """Build, train and bundle what a spec says; returns the trainer and the bundle's path."""
    import torch

    data_config: DataConfig = found.sections.get("data", DataConfig())
    config: TrainConfig = found.sections.get("train", TrainConfig())
    if steps is not None:
        config = attrs.evolve(config, max_steps=steps)
    world = join(config.parallel)
    data = read_data(data_config, out, resume, world)
    torch.manual_seed(config.seed)
    model = build(found.model)
    check_vocabulary(model, data.tokenizer)
    attach(model, data.tokenizer)
    model.sections = {name: spec.to_table(section) for name, section in found.sections.items()}
    trainer = Trainer(model, config, out=out, quiet=quiet).fit(data, resume=resume)
    path = out / "model.snn"
    world.lead(lambda: str(bundle.save(trainer.model, path)))
    return trainer, path


def read_data(config: DataConfig, out: Path, resume: bool, world: World) -> Data:
    """The corpus of a spec. The leader reads first: it trains the tokenizer and fills the cache for the others."""
    trained = out / "tokenizer.json"

    def read() -> Data:
        make = config.tokenizer.startswith("bpe:")
        known = make and (resume or not world.leader) and trained.is_file()
        data = load_data(
            config.dataset,
            tokenizer=str(trained) if known else config.tokenizer,
            seq_len=config.seq_len,
            text_field=config.text_field,
            holdout=config.holdout,
            documents_end=config.documents,
            cache=config.cache,
            workers=config.workers,
            streaming=config.streaming,
            shuffle_buffer=config.shuffle_buffer,
        )
        if make and not known:
            write_text(trained, data.tokenizer.text)  # type: ignore[attr-defined]
        return data

    first = read() if world.leader else None
    world.wait()
    return first if first is not None else read()


def evaluate(argv: list[str]) -> int:
    """Perplexity, sparsity, recall by depth and length, and samples of a bundle."""
    args = argparse.ArgumentParser(prog="fastsnn eval", description=evaluate.__doc__)
    args.add_argument("bundle", help="a .snn bundle")
    args.add_argument("--text", help="a UTF-8 text file: perplexity, bits per byte, sparsity")
    args.add_argument("--seq-len", type=int, default=512, help="tokens of a window (default 512)")
    args.add_argument("--stride", type=int, help="tokens scored per overlapping window; windows are disjoint without")
    args.add_argument("--carry", action="store_true", help="one stream: the state goes on from window to window")
    args.add_argument("--start-token", action="store_true", help="begin every window with the tokenizer's start token")
    args.add_argument("--from", dest="low", type=float, default=0.0, help="begin at this share of the text (0 … 1)")
    args.add_argument("--to", dest="high", type=float, default=1.0, help="end at this share of the text")
    args.add_argument("--recall", help="recall tasks, such as passkey,mqar")
    args.add_argument("--lengths", default="512,1024,2048", help="tokens of the recall texts (default 512,1024,2048)")
    args.add_argument("--depths", type=int, default=5, help="how many depths of the fact (default 5)")
    args.add_argument("--samples", type=int, default=10, help="texts per length and depth (default 10)")
    args.add_argument("--heatmap", help="draw recall into this PNG")
    args.add_argument("--prompt", action="append", help="continue this text; may be given several times")
    args.add_argument("--max-tokens", type=int, default=100, help="of a continuation (default 100)")
    args.add_argument("--temperature", type=float, default=0.8, help="of a continuation; 0 is greedy (default 0.8)")
    args.add_argument("--seed", type=int, default=0, help="of recall texts and continuations")
    args.add_argument("--tokenizer", help="instead of the bundle's own")
    args.add_argument("--json", action="store_true", help="as JSON")
    opts = args.parse_args(argv)
    if not (opts.text or opts.recall or opts.prompt):
        args.error("say what to evaluate: --text FILE, --recall passkey,mqar or --prompt TEXT")
    model = bundle.load(opts.bundle)
    if opts.tokenizer:
        attach(model, load_tokenizer(opts.tokenizer))
    result: dict[str, Any] = {}
    if opts.text:
        text = Path(opts.text).read_text(encoding="utf-8")
        text = text[int(len(text) * opts.low) : int(len(text) * opts.high)]
        how = {"start": opts.start_token, "stride": opts.stride, "carry": opts.carry}
        result |= evaluate_text(model, text, seq_len=opts.seq_len, **how)
    grids = {}
    for task in opts.recall.split(",") if opts.recall else ():
        lengths = [int(n) for n in opts.lengths.split(",")]
        grids[task] = recall(model, task, lengths=lengths, depths=opts.depths, samples=opts.samples, seed=opts.seed)
    if grids:
        result["recall"] = {task: grid.table() for task, grid in grids.items()}
        if opts.heatmap:
            result["heatmap"] = str(draw(opts.heatmap, grids))
    if opts.prompt:
        sampling = Sampling(temperature=opts.temperature, seed=opts.seed)
        result["samples"] = [
            {"prompt": p, "text": "".join(generate_text(model, p, opts.max_tokens, sampling))} for p in opts.prompt
        ]
    if opts.json:
        print(json.dumps(result))
        return 0
    plain = {k: v for k, v in result.items() if k not in ("recall", "samples")}
    lines = [f"{k}: {v}" for k, v in plain.items()] + [str(grid) for grid in grids.values()]
    print("\n".join(lines + [f"{row['prompt']}▸{row['text']}" for row in result.get("samples", ())]))
    return 0
