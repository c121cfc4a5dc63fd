"""Two real models for benchmarks, with text that neither was fitted on.

stories260k, a trained Llama of 260K parameters, converted to spikes in front of every projection; and a decoder trained
here on bytes of WikiText-2 for a few minutes (`--bundle` gives one that is there already, `--keep` keeps it).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from fastsnn_core import load, save
from fastsnn_text import tokenizer_of

DATA = Path(os.environ.get("FASTSNN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@attrs.frozen
class Real:
    """A model in the count runtime, its dense original where there is one, and windows ``[N, T+1]`` of unseen text."""

    name: str
    model: Any
    dense: Any
    windows: Tensor


def options(parser: argparse.ArgumentParser) -> None:
    """What the two models can be told."""
    parser.add_argument("--bundle", help="a trained byte-level bundle, instead of training one on WikiText-2")
    parser.add_argument("--steps", type=int, default=400, help="training steps otherwise (400: about 4 CPU minutes)")
    parser.add_argument("--keep", help="write the trained bundle here")
    parser.add_argument("--only", choices=("stories260k", "wikitext2"), help="one of the two")
    parser.add_argument("--windows", type=int, default=32, help="windows of 256 tokens to measure on")


def models(args: argparse.Namespace) -> list[Real]:
    """The models asked for; what is not there is said, not skipped in silence."""
    made = []
    if args.only != "wikitext2":
        made.append(stories(args.windows))
    if args.only != "stories260k":
        made.append(wikitext(args))
    return made


def stories(windows: int) -> Real:
    """stories260k, balanced on the first 60 % of its text, measured on the last 40 %."""
    from fastsnn_convert import convert
    from fastsnn_convert.language.families import import_dense

    folder = DATA / "stories260k" / "hf"
    text = next((DATA / "tinystories_text").glob("*.txt")).read_text(encoding="utf-8")
    edge = int(0.6 * len(text))
    dense = import_dense(folder)
    ids = torch.tensor([tokenizer_of(dense).encode(text[:edge])])
    model = convert(folder, calibration=ids[:, :10240], measure=False, quiet=True).model
    return Real("stories260k", model.eval(), dense, cut(model, text[edge:], windows))


def wikitext(args: argparse.Namespace) -> Real:
    """A decoder trained on WikiText-2's validation text, measured on its test text."""
    folder = DATA / "wikitext2"
    model: Any = load(args.bundle) if args.bundle else trained(folder / "valid.txt", args.steps)
    if args.keep:
        save(model, args.keep)
    return Real("wikitext2", model.eval(), None, cut(model, (folder / "test.txt").read_text("utf-8"), args.windows))


def trained(text: Path, steps: int) -> Any:
    """snn-tiny: d = 128, four layers, gated linear and sliding-window attention in turn, bytes."""
    from fastsnn import FastSNN

    torch.manual_seed(0)
    model = FastSNN.build("snn-tiny")
    FastSNN.fit(model, str(text), seq_len=256, max_steps=steps, batch_size=8, lr=3e-3, quiet=True)
    return model


def cut(model: Any, text: str, windows: int, size: int = 257) -> Tensor:
    """Windows spread evenly over a text."""
    ids = torch.tensor(tokenizer_of(model).encode(text[: 8 * windows * size * 4]))
    rows = ids[: len(ids) // size * size].reshape(-1, size)
    return rows[torch.linspace(0, len(rows) - 1, min(windows, len(rows))).long()]
