"""Perplexity against tokens/s on a real model: our bundles, llama.cpp in its formats, transformers, in one run.

    python benchmarks/frontier.py HF_DIRECTORY FILE.gguf --ours NAME=BUNDLE ... [--windows 4] [--prompt 512] [--png F]

Every row lives in a process of its own, which is held while others run, and decodes some tokens in turn behind a prompt
of 32; a round in which somebody waited for a core is thrown away. Rows:

    ours            each BUNDLE as it is (w8a, w4a or w1.58a, through the fused step)
    llama.cpp       the file itself, and the same model written again as `--formats` by llama.cpp's own quantiser
    transformers    the directory in float32 and bfloat16

Perplexity is that of the first ``--windows`` windows of 512 tokens of WikiText-2 test, on the same token ids, with each
one's own logits. ``bytes`` are those of the weights that a token reads: of ours without the rows of silent inputs and
of `up` behind shut gates, with the head (a tied embedding once, as the head), of files their size. ``floor`` is the
time to read them at the bandwidth of the same rounds. ``prompt ms`` is one prompt of ``--prompt`` tokens up to the
logits behind it. ``est. mJ`` are millijoules a token at 45 nm (Horowitz 2014, the constants of the energy scope): the
weight bytes from DRAM and one operation for each weight read (INT8 multiply-add; addition behind events of ours; of
floats, theirs), attention not counted. Of ours a step's time is split, too: the weights of the blocks, attention, the
rest with the head. ``mJ`` is measured by RAPL over the same calls, where Linux lets it be read.
llama.cpp is `pip install llama-cpp-python` (built from source, with this CPU's instructions); without it its rows are
skipped and say so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import torch
from frontier_rows import FORMATS, LENGTH, serve

from fastsnn_core import load
from fastsnn_scope_energy import PJ
from fastsnn_text import tokenizer_of

CALLS = 8  # tokens of a row's turn, unless told
SHADES = {"weights": "#d55e00", "attention": "#e69f00", "rest": "#f0c98b", "not split": "#bbbbbb"}
QUICK = {"GOMP_SPINCOUNT": "1000000"}  # else llama.cpp sleeps at every barrier


class Row:
    """The parent's end of a row's process."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path) -> None:
        command = [sys.executable, __file__, args.hf, args.gguf, "--row", name, "--folder", str(folder)]
        command += ["--threads", str(args.threads), "--prompt", str(args.prompt), "--ours", *args.ours]
        many = {key: str(args.threads) for key in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")}
        many["FASTSNN_COMPILE"] = "wait"
        env = os.environ | many | (QUICK if name.startswith("llama.cpp") else {})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout
        line = next((text for text in self.process.stdout if text.startswith("{")), "")
        self.about: dict[str, Any] = json.loads(line) if line else {"runs": False, "why": "its process ended"}

    def calls(self, count: int | str) -> dict[str, float]:
        """Seconds a token over so many, or of a prompt."""
        assert self.process.stdin
        assert self.process.stdout
        self.still(False)
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self.process.stdout.readline())
        self.still(True)
        return found

    def still(self, held: bool) -> None:
        """Hold the process: threads that wait for their next work in a loop would take the others' cores."""
        if hasattr(signal, "SIGSTOP"):
            self.process.send_signal(signal.SIGSTOP if held else signal.SIGCONT)

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin
        self.still(False)
        self.process.stdin.close()
        self.process.wait()


def measure(rows: dict[str, Row], rounds: int, what: int | str) -> tuple[harness.Times, dict[str, float]]:
    """As `harness.interleave`, over processes; and joules a call."""
    spent: dict[str, list[float]] = {name: [] for name in rows}
    for row in rows.values():
        row.calls(what if isinstance(what, str) else 2)

    def ask(name: str) -> dict[str, float]:
        calls: int | str = 1 if name == "read" else what
        answer = rows[name].calls(calls)
        spent[name].append(answer.pop("joules") / (calls if isinstance(calls, int) else 1))
        return answer

    return harness.in_rounds(list(rows), ask, rounds), {name: statistics.median(each) for name, each in spent.items()}


def draw(found: list[dict[str, Any]], path: str) -> None:
    """Perplexity up, tokens/s to the right; below, where a step of ours spends its time, and every row's floor."""
    from matplotlib.figure import Figure

    timed = [row for row in found if row.get("tokens_s")]
    figure = Figure(figsize=(9, 5 + 0.35 * len(timed)), layout="constrained")
    axis, below = figure.subplots(2, height_ratios=(5, 0.35 * len(timed)))
    colours = {"transformers": "#0072b2", "llama.cpp": "#009e73", "ours": "#d55e00"}
    for row in found:
        if row.get("tokens_s"):
            text = row["name"] + (f", {row['silent']:.0%} silent" if row["silent"] > 0.005 else "")
            axis.plot(row["tokens_s"], row["perplexity"], "o", color=colours[row["name"].partition(" ")[0]])
            axis.annotate(text, (row["tokens_s"], row["perplexity"]), (4, 4), textcoords="offset points", fontsize=7)
    axis.set_xlabel("tokens/s, one stream")
    axis.set_ylabel("perplexity, WikiText-2 test (lower is better)")
    axis.set_ylim(top=min(axis.get_ylim()[1], 1.3 * min(row["perplexity"] for row in found if "perplexity" in row)))
    for place, row in enumerate(timed):
        left, whole = 0.0, 1e3 / row["tokens_s"]
        parts = row.get("split_ms") or {}
        for name, ms in zip(SHADES, [parts.get(name, 0.0) for name in list(SHADES)[:-1]] + [whole]):
            ms = max(0.0, min(ms, whole) if name != "not split" else whole - left)
            below.barh(place, ms, left=left, color=SHADES[name], label=name if not place else None)
            left += ms
        below.plot([row["floor_ms"]] * 2, [place - 0.4, place + 0.4], color="black", label=None if place else "floor")
    below.invert_yaxis()
    below.set_yticks(range(len(timed)), [row["name"] for row in timed], fontsize=7)
    below.set_xlim(0, 1.6 * 1e3 / min(row["tokens_s"] for row in timed if row["name"].startswith(("ours", "llama"))))
    below.set_xlabel("milliseconds a token (transformers' bars go on)")
    below.legend(fontsize=7, frameon=False, loc="center right")
    for each in (axis, below):
        each.spines[["top", "right"]].set_visible(False)
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
    args.add_argument("--calls", type=int, default=CALLS, help="tokens of a row's turn: more for small models")
    args.add_argument("--prompt", type=int, default=512)
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
        print("measuring", file=sys.stderr, flush=True)
        times, spent = measure({n: row for n, row in rows.items() if row.about["runs"]}, opts.rounds, opts.calls)
        print(harness.disturbance(times))
        read, _ = measure(
            {n: row for n, row in rows.items() if row.about.get("reads")}, max(3, opts.rounds // 2), "prompt"
        )
        for name, row in rows.items():
            if name.startswith("ours") and row.about["runs"]:
                row.about["split_ms"] = row.calls("split")
            row.end()
    print(harness.disturbance(times))
    bandwidth = rows["read"].about["bytes"] / harness.median(times, "read")
    found, cells = list[dict[str, Any]](), []
    for name, row in rows.items():
        if name == "read":
            continue
        about = {"name": name} | row.about
        if name in times:
            about |= {"tokens_s": 1 / harness.median(times, name), "floor_ms": 1e3 * about["bytes"] / bandwidth}
            about |= {"estimated_mj": 1e-9 * (about["pj"] + about["bytes"] * PJ["dram"] / 8)}
            about |= {"measured_mj": None if math.isnan(spent[name]) else 1e3 * spent[name]}
            about |= {"prompt_ms": 1e3 * harness.median(read, name)}
            about["prompt_over_Q8_0"] = harness.ratio(read, "llama.cpp Q8_0", name)
            about |= {f"over_{r}": harness.ratio(times, f"llama.cpp {r}", name)
                      for r in ("Q8_0", "Q4_0") if f"llama.cpp {r}" in times}  # fmt: skip
        found.append(about)
        keys = ("perplexity", "silent", "bytes", "tokens_s", "floor_ms", "over_Q8_0", "over_Q4_0")
        keys += ("prompt_ms", "prompt_over_Q8_0", "estimated_mj", "measured_mj")
        cells.append([name, *(about.get(key, about.get("why")) for key in keys)])
    head = ["", "perplexity", "silent", "bytes", "tokens/s", "floor ms", "x Q8_0", "x Q4_0"]
    head += ["prompt ms", "x Q8_0", "est. mJ", "mJ"]
    print(harness.table(head, cells))
    for about in found:
        if parts := about.get("split_ms"):
            print(f"{about['name']}, ms of a step:", ", ".join(f"{name} {ms:.3f}" for name, ms in parts.items()))
    if all(row.get("measured_mj") is None for row in found):
        print("mJ: RAPL cannot be read here (/sys/class/powercap), so no joules were measured")
    if opts.png:
        draw(found, opts.png)
    harness.emit(
        {"threads": opts.threads, "load": os.getloadavg(), "read_gb_s": bandwidth / 1e9, "rows": found}, opts.json
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
