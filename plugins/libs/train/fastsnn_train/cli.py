"""The verb ``fastsnn fit``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, number
from fastsnn_console.progress import Progress
from fastsnn_console.tables import figure_lines
from fastsnn_core import build, bundle, spec
from fastsnn_core.component import bounds_of, fields
from fastsnn_core.errors import UserError
from fastsnn_core.files import write_text
from fastsnn_text import attach
from fastsnn_train.config import DataConfig, TrainConfig, with_epochs
from fastsnn_train.data.packing import Data, load_data
from fastsnn_train.data.prepare import check_vocabulary
from fastsnn_train.loop.parallel import World, join_group, leave_group
from fastsnn_train.loop.trainer import Trainer, TrainingError
from fastsnn_train.samples.prepare import SampleData, sample_data


def fit(argv: list[str]) -> int:
    """Train the model of a spec on its [data], and leave a bundle under --out."""
    args = Parser("fit", fit.__doc__)
    args.add_argument("spec", help="a TOML spec with [model], and optionally [data] and [train]")
    args.add_argument("--out", required=True, help="folder for model.snn, checkpoints and log.jsonl")
    args.add_argument("--resume", action="store_true", help="go on from the newest checkpoint under --out")
    args.add_argument("--steps", type=number(int, ge=0), help="instead of [train] max_steps")
    args.add_argument("--quiet", action="store_true", help="no progress")
    args.add_argument("--json", action="store_true", help="print the result as JSON")
    args.add_argument("--settings", action="store_true", help="list what [data] and [train] may say, and stop")
    if "--settings" in argv:
        print(settings())
        return 0
    opts = args.parse_args(argv)
    found = spec.load(opts.spec)
    out, quiet = targets.folder(opts.out, option="--out"), opts.quiet or opts.json
    targets.bundle(out / "model.snn")
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
        plain = {k: v for k, v in result.items() if not isinstance(v, dict)}
        print(json.dumps(result) if opts.json else "\n".join(figure_lines(plain)))
    world = trainer.world
    del trainer
    leave_group(world)
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
            value = json.dumps(table[field.name]) if field.name in table else "{}"
            lines.append(f"  {field.name} = {value}  {bounds.doc}{more and f' ({more})'}")
    return "\n".join(lines)


def fit_spec(
    found: spec.Spec, out: Path, *, resume: bool = False, steps: int | None = None, quiet: bool = False
) -> tuple[Trainer, Path]:
    """Build, train and bundle what a spec says; returns the trainer and the bundle's path."""
    import torch

    data_config: DataConfig = found.sections.get("data", DataConfig())
    config: TrainConfig = found.sections.get("train", TrainConfig())
    if steps is not None:
        config = attrs.evolve(config, max_steps=steps, epochs=0.0)
    world = join_group(config.parallel)
    data: Any = None
    with Progress("reading the data and building the model", quiet=quiet or not world.leader):
        if data_config.task == "language":
            data = read_data(data_config, out, resume, world)
        torch.manual_seed(config.seed)
        model: Any = build(found.model)
    if data is None:
        data = read_spec_samples(model, data_config, config, quiet)
        config = with_epochs(config, len(data.train))
    else:
        check_vocabulary(model, data.tokenizer)
        attach(model, data.tokenizer)
    model.sections = {name: spec.to_table(section) for name, section in found.sections.items()}
    trainer = Trainer(model, config, out=out, quiet=quiet).fit(data, resume=resume)
    path = out / "model.snn"
    world.lead(lambda: str(bundle.save(trainer.model, path)))
    return trainer, path


def read_spec_samples(model: Any, data: DataConfig, config: TrainConfig, quiet: bool = False) -> SampleData:
    """The samples of a spec."""
    return sample_data(
        model,
        data.dataset,
        task=data.task,
        objective=config.objective,
        holdout=data.holdout,
        held_out=data.held_out or None,
        class_weights=data.class_weights,
        change=data.transforms,
        x=data.input,
        y=data.target,
        seed=config.seed,
        quiet=quiet,
    )


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
