"""The rows of `frontier.py`, each of which lives in a process of its own: a step, a prompt, and what is known of it."""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import harness
import torch
from weights_read import weights_read

from fastsnn_core import load
from fastsnn_core.site import sites
from fastsnn_integer.ternary import PackedTernary
from fastsnn_scope_energy import PJ
from fastsnn_text.generate import generate_ids

LENGTH, PROMPT, LONGEST = 512, 32, 256
FORMATS = {"F16": 1, "Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15, "Q2_K": 10}
"""llama.cpp's names and numbers of file types."""


def perplexity(logits: Any, rows: torch.Tensor) -> float:
    """Of ``logits(tokens [T]) -> [T, V]`` on windows ``[N,T]``, each on its own."""
    total = 0.0
    for row in rows:
        found = logits(row)[:-1].float().log_softmax(-1)
        total += float(-found.gather(-1, row[1:, None]).mean())
    return math.exp(total / len(rows))


def stored(layer: Any) -> int:
    """Bytes of a layer's weights and scales, as its kernel reads them: scales of 4-bit weights are float16."""
    four = layer.weight.dtype == torch.uint8 and not isinstance(layer, PackedTernary)
    return sum(
        t.numel() * (2 if four and t.is_floating_point() else t.element_size()) for t in layer.buffers(recurse=False)
    )


def weights_of(layer: Any) -> int:
    """How many weights a layer has; several may share a byte."""
    return layer.weight.numel() if not hasattr(layer, "out_features") else layer.in_features * layer.out_features


@torch.inference_mode()
def ours(path: str, rows: torch.Tensor, prompt: list[int]) -> tuple[Any, Any, dict[str, Any]]:
    """A bundle in the fused step: a step, a prompt, facts."""
    model: Any = load(path).eval()
    found = weights_read(model, rows[:1, :128])
    sizes = {name: stored(row.layer) for name, row in found.items()}
    read = sum(sizes[name] * row.read for name, row in found.items())
    spiking = sum(weights_of(row.layer) * row.read for row in found.values() if row.active < 1)
    plain = sum(weights_of(row.layer) for row in found.values() if row.active == 1)
    facts = {
        "pj": spiking * PJ["int32_add"] + plain * PJ["int8_mac"],
        "bytes": read,
        "silent": 1 - read / max(1, sum(sizes.values())),
        "perplexity": perplexity(lambda t: model(t[None])[0], rows),
    }
    _, first = model(rows[:1, :PROMPT], return_state=True, last=True)
    model.fast(first)

    def start() -> Any:  # nobody else changes the model, so it is not looked at again
        return model.fast_all([first], [LONGEST], within=3600.0)[0]

    streams = [start()]
    if streams[0] is None:
        return None, None, facts | {"why": model.fast_step["why"]}
    turn, ids = iter(range(1 << 30)), rows.flatten().tolist()

    def run() -> None:
        if streams[0].stream.position >= LONGEST:
            streams[0] = start()
        streams[0].step(ids[next(turn) % len(ids)])

    return run, lambda: list(generate_ids(model, prompt, 1)), facts


@torch.inference_mode()
def split(path: str, rows: torch.Tensor) -> dict[str, float]:
    """Milliseconds of a step of ours, least of five times eight: what is saved where no input of a block spikes (its
    weights), what more tokens behind it cost (attention, 32 to 240 beside 2), and the rest, the head's weights too."""
    model: Any = load(path).eval()
    ids = rows.flatten().tolist()

    def at(tokens: int) -> float:
        _, state = model(torch.tensor([ids[:tokens]]), return_state=True, last=True)
        found = []
        for _ in range(5):
            stream = model.fast(state)
            stream.step(ids[tokens])
            found.append(harness.timed(lambda stream=stream: stream.step(ids[tokens]), 8)["seconds"])
        return 1e3 * min(found)

    def between() -> float:
        return (at(PROMPT) + at(LONGEST - 16)) / 2

    whole = between()
    for name, site in sites(model).items():
        if name != "head_site" and "dead_zone" in getattr(site.neuron, "dials", ()):
            site.neuron.dial_("dead_zone", 1e4)
    silent, first = between(), at(2)
    return {"weights": whole - silent, "attention": silent - first, "rest": first}


def llama_cpp(path: str, rows: torch.Tensor, prompt: list[int], threads: int) -> tuple[Any, Any, dict[str, Any]]:
    """A GGUF in llama.cpp: a step, a prompt, facts."""
    import llama_cpp as lib

    options = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
    model = lib.Llama(path, n_ctx=LENGTH, logits_all=True, **options)

    def logits(t: torch.Tensor) -> torch.Tensor:
        model.reset()
        model.eval(t.tolist())
        return torch.from_numpy(model.scores[: len(t)].copy())

    facts: dict[str, Any] = {"perplexity": perplexity(logits, rows), "silent": 0.0, "bytes": os.stat(path).st_size}
    half = Path(path).stem == "F16"
    facts["pj"] = lib.llama_model_n_params(model.model) * PJ["fp16_mac" if half else "int8_mac"]
    reader = lib.Llama(path, n_ctx=len(prompt), n_batch=len(prompt), n_ubatch=len(prompt), **options)
    model = lib.Llama(path, n_ctx=LENGTH, **options)
    ids = rows.flatten().tolist()
    model.eval(ids[:PROMPT])
    turn = iter(range(1 << 30))

    def run() -> None:
        if model.n_tokens >= LONGEST:
            model.n_tokens = PROMPT
        model.eval([ids[next(turn) % len(ids)]])

    def read() -> None:
        reader.reset()
        reader.eval(prompt)

    return run, read, facts


@torch.inference_mode()
def transformers_row(path: str, kind: str, rows: torch.Tensor, prompt: list[int]) -> tuple[Any, Any, dict[str, Any]]:
    """The directory in transformers, with its cache: a step, a prompt, facts."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, kind)).eval()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    facts = {"perplexity": perplexity(lambda t: model(t[None]).logits[0], rows), "silent": 0.0, "bytes": size}
    facts["pj"] = sum(p.numel() for p in model.parameters()) * PJ["fp32_mac" if kind == "float32" else "fp16_mac"]
    past = model(rows[:1, :PROMPT], use_cache=True).past_key_values
    turn, ids = iter(range(1 << 30)), rows.flatten().tolist()

    def run() -> None:
        if past.get_seq_length() >= LONGEST:
            past.crop(PROMPT - past.get_seq_length())
        with torch.inference_mode():
            model(torch.tensor([[ids[next(turn) % len(ids)]]]), past_key_values=past, use_cache=True)

    def read() -> None:
        with torch.inference_mode():
            model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    return run, read, facts


def written_as(source: str, kind: str, folder: Path) -> str:
    """The GGUF in another format, by llama.cpp's own quantiser."""
    import llama_cpp as lib

    out = folder / f"{kind}.gguf"
    if not out.exists():
        how = lib.llama_model_quantize_default_params()
        how.ftype, how.allow_requantize, how.nthread = FORMATS[kind], True, 1
        scratch = out.with_suffix(".part")
        if lib.llama_model_quantize(source.encode(), str(scratch).encode(), ctypes.byref(how)):
            raise RuntimeError(f"llama.cpp did not write {kind}")
        scratch.rename(out)
    return str(out)


def joules() -> float:
    """What RAPL has counted so far, of all packages; NaN where it cannot be read."""
    try:
        return (
            sum(int(p.read_text()) for p in Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj")) * 1e-6
            or math.nan
        )
    except OSError:
        return math.nan


def serve(args: argparse.Namespace) -> None:
    """A row's process: facts first, then calls of the step or ``prompt`` in; seconds, joules out."""
    rows = torch.load(args.folder / "windows.pt")
    prompt = rows.flatten().tolist()[: args.prompt]
    kind, _, what = args.row.partition(" ")
    run: Any
    read: Any
    if kind == "read":
        run, size = harness.reader()
        read, facts = None, dict[str, Any](bytes=size)
    elif kind == "ours":
        run, read, facts = ours(dict(pair.split("=", 1) for pair in args.ours)[what], rows, prompt)
    elif kind == "transformers":
        run, read, facts = transformers_row(args.hf, what, rows, prompt)
    elif importlib.util.find_spec("llama_cpp"):
        path = args.gguf if what == "file" else written_as(args.gguf, what, args.folder)
        run, read, facts = llama_cpp(path, rows, prompt, args.threads)
    else:
        run, read, facts = None, None, {"why": "llama_cpp is not installed"}
    print(json.dumps(facts | {"runs": run is not None, "reads": read is not None}), flush=True)
    for line in sys.stdin:
        if line.strip() == "split":
            print(json.dumps(split(dict(pair.split("=", 1) for pair in args.ours)[what], rows)), flush=True)
            continue
        before = joules()
        found = harness.timed(read, 1) if line.strip() == "prompt" else harness.timed(run, int(line))
        print(json.dumps(found | {"joules": joules() - before}), flush=True)
