"""A real chat model made as silent as asked, then healed: quality on text and chats that healing never saw.

    python benchmarks/real_heal.py [HF_DIRECTORY] --silent 0.4 --minutes 15 [--cpu] [--set lr=2e-4] [--to B.snn]
                                   [--given BUNDLE | --keep BUNDLE]

SmolLM2-135M-Instruct with k = 6 and finer, dead zones chosen by the estimate of `fastsnn tune` on WikiText-2 valid
for this share of silent bytes; healed on valid, too; measured on the first windows of 512 tokens of test, beside the
dense model, and by how often both take the same next token in the dense model's greedy answers to chat questions.
JSON on stdout; perplexities do not depend on the machine's load, steps per minute
do; with `--cpu` the minutes are of processor time, which they hardly do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from real_model import as_it_is

from fastsnn_convert import convert
from fastsnn_convert.language import distillation
from fastsnn_convert.language.distillation import heal
from fastsnn_convert.language.distillation_data import tokens_of
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.reference_eval import HeldOutReference
from fastsnn_core import load, save
from fastsnn_text import Sampling, generate_ids
from fastsnn_text.chat import chat_prompt
from fastsnn_tune.criteria import criterion
from fastsnn_tune.silent_bytes import SilentBytes, settled

QUESTIONS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about autumn leaves.",
    "How do I boil an egg?",
    "Give me three tips for learning a new language.",
    "What is the difference between a list and a tuple in Python?",
    "Summarise the story of Romeo and Juliet in two sentences.",
    "Who wrote Pride and Prejudice?",
)
ANSWER = 48


@torch.no_grad()
def chats(dense: Any) -> list[tuple[torch.Tensor, int]]:
    """Questions in the chat template with the dense model's greedy answers: tokens ``[T]``, and where answers begin."""
    found = []
    for question in QUESTIONS:
        ids, _ = chat_prompt(dense, question)
        said = list(generate_ids(dense, ids, ANSWER, Sampling(temperature=0.0)))
        found.append((torch.tensor(ids + said), len(ids)))
    return found


@torch.no_grad()
def agreement(model: Any, dense: Any, asked: list[tuple[torch.Tensor, int]]) -> float:
    """Share of the answers' tokens at which both models would take the same one."""
    same = total = 0
    for ids, begin in asked:
        a, b = (net(ids[None])[0, begin - 1 : -1].argmax(-1) for net in (model, dense))
        same, total = same + int((a == b).sum()), total + len(a)
    return same / max(1, total)


def silenced(folder: Path, text: Path, share: float) -> Any:
    """Converted with k = 6, then set for the setting whose silent bytes are estimated nearest to `share`."""
    base = convert(folder, k=6.0, calibration=text, measure=False, spread=False).model
    made = SilentBytes.of(base, criterion("ours"), tokens_of(text, base)[:1024].view(2, 512))
    return settled(made, min(made.path(), key=lambda s: abs(s.silent_bytes - share)))


def main() -> int:
    """Run, print JSON."""
    cache = Path(os.environ.get("FASTSNN_DATA_CACHE") or Path.home() / ".cache/fastsnn/smollm2")
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("folder", nargs="?", type=Path, default=cache / "hf")
    args.add_argument("--silent", type=float, default=0.4)
    args.add_argument("--minutes", type=float)
    args.add_argument("--steps", type=int)
    args.add_argument("--cpu", action="store_true", help="minutes of processor time")
    args.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of Healing")
    args.add_argument("--windows", type=int, default=8)
    args.add_argument("--out", type=Path, help="checkpoints")
    args.add_argument("--to", type=Path, help="write the healed bundle here")
    args.add_argument("--given", type=Path, help="a bundle to heal, instead of making one as silent as --silent")
    args.add_argument("--keep", type=Path, help="write the bundle that is about to be healed here")
    args.add_argument("--data", type=Path, default=Path(os.environ.get("FASTSNN_DATA", "../shared/data")))
    opts = args.parse_args()
    if not (opts.folder / "config.json").is_file():
        print(f"{opts.folder} is no Hugging Face directory (README of benchmarks)", file=sys.stderr)
        return 2
    valid, test = (opts.data / "wikitext2" / f"{name}.txt" for name in ("valid", "test"))
    settings = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in opts.set)}
    dense = import_dense(opts.folder)
    x = tokens_of(test, dense)[: opts.windows * 512].view(-1, 512)
    held, asked = HeldOutReference.of(dense, x), chats(dense)
    rows: dict[str, Any] = {"load": os.getloadavg(), "settings": settings}
    model = load(opts.given) if opts.given else silenced(opts.folder, valid, opts.silent)
    if opts.keep:
        save(model, opts.keep)
    rows["before"] = as_it_is(model, held) | {"top1_chat": agreement(model, dense, asked)}
    print(json.dumps(rows["before"]), file=sys.stderr, flush=True)
    began, cpu = time.perf_counter(), time.process_time()
    if opts.cpu:
        distillation.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    budget = {"steps": opts.steps} if opts.steps else {"minutes": opts.minutes or 15.0}
    log = heal(model, dense, valid, out=opts.out, resume=opts.out is not None, **budget, **settings)
    rows["heal"] = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        "log": log,
    }
    model.eval()
    rows["after"] = as_it_is(model, held) | {"top1_chat": agreement(model, dense, asked)}
    if opts.to:
        save(model, opts.to)
    print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    torch.manual_seed(0)
    raise SystemExit(main())
