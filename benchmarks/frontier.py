"""Perplexity against tokens/s on a real model: our bundles, llama.cpp in its formats, transformers, in one run.

    python benchmarks/frontier.py HF_DIRECTORY FILE.gguf --ours NAME=BUNDLE ... [--windows 4] [--png F] [--json F]

Every row lives in a process of its own and decodes some tokens in turn behind a prompt of 32; a round in which somebody
waited for a core is thrown away. Rows:

    ours            each BUNDLE as it is (w8a or w4a, through the fused step)
    llama.cpp       the file itself, and the same model written again as `--formats` by llama.cpp's own quantiser
    transformers    the directory in float32 and bfloat16

Perplexity is that of the first ``--windows`` windows of 512 tokens of WikiText-2 test, on the same token ids, with each
one's own logits. ``bytes`` are those of the weights that a token reads: of ours without the rows of silent inputs and
with the head (a tied embedding once, as the head), of files their size. ``floor`` is the time to read them at the
bandwidth of the same rounds. llama.cpp is `pip install llama-cpp-python` (built from source, with this CPU's
instructions); without it its rows are skipped and say so.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import torch

from fastsnn_core import load
from fastsnn_text import tokenizer_of

LENGTH, PROMPT, CALLS, LONGEST = 512, 32, 8, 256
FORMATS = {"F16": 1, "Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15, "Q2_K": 10}
"""llama.cpp's names and numbers of file types."""
QUICK = {"GOMP_SPINCOUNT": "1000000"}  # else llama.cpp sleeps at every barrier


def perplexity(logits: Any, rows: torch.Tensor) -> float:
    """Of ``logits(tokens [T]) -> [T, V]`` on windows ``[N,T]``, each on its own."""
    total = 0.0
    for row in rows:
        found = logits(row)[:-1].float().log_softmax(-1)
        total += float(-found.gather(-1, row[1:, None]).mean())
    return math.exp(total / len(rows))


def stored(layer: Any) -> int:
    """Bytes of a layer's weights and scales, as its kernel reads them: scales of 4-bit weights are float16."""
    four = layer.weight.dtype == torch.uint8
    return sum(
        t.numel() * (2 if four and t.is_floating_point() else t.element_size()) for t in layer.buffers(recurse=False)
    )


@torch.inference_mode()
def ours(path: str, rows: torch.Tensor) -> tuple[Any, dict[str, Any]]:
    """A bundle in the fused step."""
    model: Any = load(path).eval()
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "weight") and hasattr(m, "in_features")}
    active: dict[str, float] = {}
    handles = []
    for name, module in layers.items():

        def hook(layer: Any, args: tuple[Any, ...], name: str = name) -> None:
            spikes = hasattr(args[0], "counts")
            active[name] = float((args[0].counts != 0).float().mean()) if spikes else 1.0

        handles.append(module.register_forward_pre_hook(hook))
    model(rows[:1, :128])
    for handle in handles:
        handle.remove()
    sizes = {name: stored(layers[name]) for name in active}
    read = sum(size * active[name] for name, size in sizes.items())
    facts = {
        "bytes": read,
        "silent": 1 - read / max(1, sum(sizes.values())),
        "perplexity": perplexity(lambda t: model(t[None])[0], rows),
    }
    _, first = model(rows[:1, :PROMPT], return_state=True, last=True)
    streams = [model.fast(first)]
    if streams[0] is None:
        return None, facts | {"why": model.fast_step["why"]}
    turn, ids = iter(range(1 << 30)), rows.flatten().tolist()

    def run() -> None:
        if streams[0].stream.position >= LONGEST:
            streams[0] = model.fast(first)
        streams[0].step(ids[next(turn) % len(ids)])

    return run, facts


def llama_cpp(path: str, rows: torch.Tensor, threads: int) -> tuple[Any, dict[str, Any]]:
    """A GGUF in llama.cpp."""
    import llama_cpp as lib

    options = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
    model = lib.Llama(path, n_ctx=LENGTH, logits_all=True, **options)

    def logits(t: torch.Tensor) -> torch.Tensor:
        model.reset()
        model.eval(t.tolist())
        return torch.from_numpy(model.scores[: len(t)].copy())

    facts: dict[str, Any] = {"perplexity": perplexity(logits, rows), "silent": 0.0, "bytes": os.stat(path).st_size}
    model = lib.Llama(path, n_ctx=LENGTH, **options)
    ids = rows.flatten().tolist()
    model.eval(ids[:PROMPT])
    turn = iter(range(1 << 30))

    def run() -> None:
        if model.n_tokens >= LONGEST:
            model.n_tokens = PROMPT
        model.eval([ids[next(turn) % len(ids)]])

    return run, facts


@torch.inference_mode()
def transformers_row(path: str, kind: str, rows: torch.Tensor) -> tuple[Any, dict[str, Any]]:
    """The directory in transformers, with its cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, kind)).eval()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    facts = {"perplexity": perplexity(lambda t: model(t[None]).logits[0], rows), "silent": 0.0, "bytes": size}
    past = model(rows[:1, :PROMPT], use_cache=True).past_key_values
    turn, ids = iter(range(1 << 30)), rows.flatten().tolist()

    def run() -> None:
        if past.get_seq_length() >= LONGEST:
            past.crop(PROMPT - past.get_seq_length())
        with torch.inference_mode():
            model(torch.tensor([[ids[next(turn) % len(ids)]]]), past_key_values=past, use_cache=True)

    return run, facts


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


def serve(args: argparse.Namespace) -> None:
    """A row's process: facts first, then a line in, ``seconds a token`` and what it waited out."""
    rows = torch.load(args.folder / "windows.pt")
    kind, _, what = args.row.partition(" ")
    run: Any
    if kind == "read":
        run, size = harness.reader()
        facts: dict[str, Any] = {"bytes": size}
    elif kind == "ours":
        run, facts = ours(dict(pair.split("=", 1) for pair in args.ours)[what], rows)
    elif kind == "transformers":
        run, facts = transformers_row(args.hf, what, rows)
    elif importlib.util.find_spec("llama_cpp"):
        path = args.gguf if what == "file" else written_as(args.gguf, what, args.folder)
        run, facts = llama_cpp(path, rows, args.threads)
    else:
        run, facts = None, {"why": "llama_cpp is not installed"}
    print(json.dumps(facts | {"runs": run is not None}), flush=True)
    for line in sys.stdin:
        print(json.dumps(harness.timed(run, int(line))), flush=True)


class Row:
    """The parent's end of a row's process."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path) -> None:
        command = [sys.executable, __file__, args.hf, args.gguf, "--row", name, "--folder", str(folder)]
        command += ["--threads", str(args.threads), "--ours", *args.ours]
        many = {key: str(args.threads) for key in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")}
        env = os.environ | many | (QUICK if name.startswith("llama.cpp") else {})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout
        line = next((text for text in self.process.stdout if text.startswith("{")), "")
        self.about: dict[str, Any] = json.loads(line) if line else {"runs": False, "why": "its process ended"}

    def calls(self, count: int) -> dict[str, float]:
        """Seconds a token over so many."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self.process.stdout.readline())
        return found


def measure(rows: dict[str, Row], rounds: int) -> harness.Times:
    """As `harness.interleave`, over processes."""
    for row in rows.values():
        row.calls(2)
    return harness.in_rounds(list(rows), lambda name: rows[name].calls(1 if name == "read" else CALLS), rounds)


def draw(found: list[dict[str, Any]], path: str) -> None:
    """Perplexity up, tokens/s to the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    colours = {"transformers": "#0072b2", "llama.cpp": "#009e73", "ours": "#d55e00"}
    for row in found:
        if row.get("tokens_s"):
            text = row["name"] + (f", {row['silent']:.0%} silent" if row["silent"] > 0.005 else "")
            axis.plot(row["tokens_s"], row["perplexity"], "o", color=colours[row["name"].partition(" ")[0]])
            axis.annotate(text, (row["tokens_s"], row["perplexity"]), (4, 4), textcoords="offset points", fontsize=7)
    axis.set_xlabel("tokens/s, one stream")
    axis.set_ylabel("perplexity, WikiText-2 test (lower is better)")
    axis.set_ylim(top=min(axis.get_ylim()[1], 1.3 * min(row["perplexity"] for row in found if "perplexity" in row)))
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run, print a table and JSON."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("hf", help="the model as a Hugging Face directory")
    args.add_argument("gguf", help="and as a GGUF")
    args.add_argument("--ours", nargs="+", default=[], metavar="NAME=BUNDLE", help="w8a or w4a bundles made of it")
    args.add_argument("--formats", default=",".join(FORMATS), help=f"of llama.cpp (default {','.join(FORMATS)})")
    args.add_argument("--windows", type=int, default=4)
    args.add_argument("--rounds", type=int, default=9)
    args.add_argument("--data", type=Path, default=Path(os.environ.get("FASTSNN_DATA", "../shared/data")))
    args.add_argument("--threads", type=int, default=torch.get_num_threads())
    args.add_argument("--folder", type=Path, help="where llama.cpp's formats are kept, or lie already")
    args.add_argument("--png")
    args.add_argument("--json")
    args.add_argument("--row", help=argparse.SUPPRESS)
    opts = args.parse_args()
    torch.set_num_threads(opts.threads)
    if opts.row:
        serve(opts)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = opts.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        text = (opts.data / "wikitext2" / "test.txt").read_text(encoding="utf-8")[: opts.windows * LENGTH * 8]
        first = load(opts.ours[0].split("=", 1)[1])
        ids = torch.tensor(tokenizer_of(first).encode(text)[: opts.windows * LENGTH])
        torch.save(ids.view(-1, LENGTH), folder / "windows.pt")
        del first
        names = ["read", *(f"ours {pair.split('=', 1)[0]}" for pair in opts.ours), "llama.cpp file"]
        names += [f"llama.cpp {kind}" for kind in filter(None, opts.formats.split(","))]
        names += ["transformers float32", "transformers bfloat16"]
        rows = {name: Row(name, opts, folder) for name in names}
        times = measure({name: row for name, row in rows.items() if row.about["runs"]}, opts.rounds)
        for row in rows.values():
            row.process.stdin.close()  # type: ignore[union-attr]
            row.process.wait()
    print(harness.disturbance(times))
    bandwidth = rows["read"].about["bytes"] / harness.median(times, "read")
    found, cells = list[dict[str, Any]](), []
    for name, row in rows.items():
        if name == "read":
            continue
        about = {"name": name} | row.about
        if name in times:
            about |= {"tokens_s": 1 / harness.median(times, name), "floor_ms": 1e3 * about["bytes"] / bandwidth}
            about |= {f"over_{r}": harness.ratio(times, f"llama.cpp {r}", name)
                      for r in ("Q8_0", "Q4_0") if f"llama.cpp {r}" in times}  # fmt: skip
        found.append(about)
        keys = ("perplexity", "silent", "bytes", "tokens_s", "floor_ms", "over_Q8_0", "over_Q4_0")
        cells.append([name, *(about.get(key, about.get("why")) for key in keys)])
    head = ["", "perplexity", "silent", "bytes", "tokens/s", "floor ms", "x Q8_0", "x Q4_0"]
    print(harness.table(head, cells))
    if opts.png:
        draw(found, opts.png)
    harness.emit(
        {"threads": opts.threads, "load": os.getloadavg(), "read_gb_s": bandwidth / 1e9, "rows": found}, opts.json
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
