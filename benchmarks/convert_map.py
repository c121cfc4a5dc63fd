"""What converts to what, at what loss, at what speed: the rows of docs/convert_map.md, each measured in one run.

    python benchmarks/convert_map.py [--only stories,images,chat] [--chat FILE.gguf [--given BUNDLE]] [--json FILE]

*stories*: stories260K (a Llama), perplexity of 16,000 characters of held-out text, spiking float and as INT8 (`w8a`);
*images*: a CNN and an MLP on 2,000 test images of MNIST; *chat*: SmolLM2-135M from its GGUF file, 9,000 characters of
WikiText-2 test (``--given``: its conversion, k = 3, made before by `fastsnn convert`).

``loss`` is perplexity over that of the dense network, or points of accuracy lost. ``speed`` is the processor seconds
of the dense network over those of the converted one for the same work (64 tokens written; a batch of 256 images),
medians of rounds in turns, on one thread: above 1 is faster. Rows of an older file that are not measured now are kept
(default: results/convert_map.json). Then `python docs/convert_map.py` writes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch
from convert_images import accuracy, burn, idx, mlp
from convert_llm import SOURCE, texts

from fastsnn_convert import convert
from fastsnn_convert.language.families import import_dense
from fastsnn_core import create, load
from fastsnn_text import Sampling, generate_text
from fastsnn_train import evaluate_text

RESULTS = Path(__file__).parent / "results" / "convert_map.json"
PIECES = ("stories", "images", "chat")
TOKENS, IMAGES, BATCH, ROUNDS = 64, 2000, 256, 5


def faster(dense: Any, converted: Any) -> float:
    """How many times fewer processor seconds `converted` takes than `dense`."""
    runs = {"dense": dense, "converted": converted}

    def ask(name: str) -> dict[str, float]:
        begin = time.process_time()
        runs[name]()
        return {"seconds": time.process_time() - begin, "whole": 1.0, "waited": 0.0}

    for run in runs.values():
        run()
    times = harness.in_rounds(list(runs), ask, ROUNDS)
    return round(statistics.median(a / b for a, b in zip(times["dense"], times["converted"])), 3)


def writes(model: Any) -> Any:
    """A call that writes some tokens with the fused step; it is compiled before anything is timed."""
    say = lambda: "".join(generate_text(model, "Once upon a time", TOKENS, Sampling(temperature=0.0)))  # noqa: E731
    end = time.monotonic() + 1200
    say()
    while "being compiled" in str(getattr(model, "fast_step", {}).get("why")) and time.monotonic() < end:
        time.sleep(2)
        say()
    if "being compiled" in str(getattr(model, "fast_step", {}).get("why")):
        raise SystemExit("the fused step was not compiled after 20 minutes: its speed cannot be measured now")
    return say


def language(
    source: Any, name: str, settings: dict[str, dict[str, Any]], fit: str, test: str, given: str | None = None
) -> list[dict[str, Any]]:
    """Rows of a language model: spiking as converted (or as `given`), and in INT8."""
    dense = import_dense(source)
    floor = evaluate_text(dense, test, seq_len=512)["perplexity"]
    spoken, rows = writes(dense), []
    for what, options in settings.items():
        made = load(given) if given else convert(source, calibration=[fit], measure=False, quiet=True, **options).model
        with tempfile.TemporaryDirectory() as folder:
            small = load(create("exporter", "w8a").export(made, Path(folder) / "w8a.snn"))
            for kind, model in (("spikes, " + what, made), (f"the same, INT8 (w8a), {what}", small)):
                found = evaluate_text(model, test, seq_len=512)
                row = {"from": name, "to": kind, "loss": round(found["perplexity"] / floor, 4), "measure": "perplexity"}
                row |= {"silent": round(found["silent_fraction"], 4), "speed": faster(spoken, writes(model))}
                print(row, flush=True)
                rows.append(row)
    return rows


@torch.no_grad()
def images() -> list[dict[str, Any]]:
    """Rows of networks for images."""
    train, right = idx("train-images-idx3-ubyte.gz").float()[:, None] / 255, idx("train-labels-idx1-ubyte.gz").long()
    test = idx("t10k-images-idx3-ubyte.gz").float()[:IMAGES, None] / 255
    labels = idx("t10k-labels-idx1-ubyte.gz").long()[:IMAGES]
    with torch.enable_grad():
        flat = mlp(train, right, 2)
    rows = []
    for name, network in (("CNN of three convolutions, MNIST", burn()), ("MLP 784-256-256-10, MNIST", flat)):
        dense = accuracy(network, test, labels)
        for steps in (2, 3, 4):
            done = convert(network, calibration=train[:512], steps=steps)
            lost = 100 * (dense - accuracy(done.model, test, labels))
            row = {"from": name, "to": f"{steps} spike steps", "loss": round(lost, 2), "measure": "accuracy"}
            row["speed"] = faster(lambda net=network: net(test[:BATCH]), lambda done=done: done.model(test[:BATCH]))
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    """Measure and write."""
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--only", help=f"pieces, with commas, out of {', '.join(PIECES)}")
    args.add_argument("--chat", help="SmolLM2's GGUF file, for the piece chat")
    args.add_argument("--given", help="a bundle of its conversion, instead of converting")
    args.add_argument("--json", type=Path, default=RESULTS)
    opts = args.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(opts.json.read_text(encoding="utf-8"))["rows"] if opts.json.is_file() else {}
    for piece in harness.pieces_of(opts.only, PIECES):
        began = time.process_time()
        if piece == "stories":
            fit, test = texts()
            test = test[:16_000]
            ways: dict[str, dict[str, Any]] = {"k = 3": {"k": 3.0}, "S = 4, bursts": {"steps": 4, "burst": 2}}
            found = language(SOURCE, "stories260K, a Llama", ways, fit, test)
        elif piece == "images":
            found = images()
        elif opts.chat:
            data = Path(os.environ.get("FASTSNN_DATA", "../shared/data")) / "wikitext2"
            fit, test = (data.joinpath(f"{part}.txt").read_text(encoding="utf-8") for part in ("valid", "test"))
            name, chat_ways = "SmolLM2-135M, a chat model (GGUF)", {"k = 3": {"k": 3.0}}
            found = language(opts.chat, name, chat_ways, fit[:60_000], test[:9_000], opts.given)
        else:
            print("chat: skipped, no --chat FILE.gguf")
            continue
        rows[piece] = [row | {"day": time.strftime("%Y-%m-%d"), "script": "convert_map.py"} for row in found]
        print(f"{piece}: {time.process_time() - began:.0f} processor seconds")
        opts.json.parent.mkdir(parents=True, exist_ok=True)
        harness.emit({"rows": rows}, str(opts.json))


if __name__ == "__main__":
    main()
